"""Secrets leave command lines in every spelling; ordinary options stay as they are."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optrace.trace.secrets import redact, redact_text

SECRET = "Zq81-plainvalue_77"


@pytest.mark.parametrize(
    "argv",
    [
        ["--api-key", SECRET],
        ["--api_key", SECRET],
        ["--apikey", SECRET],
        ["--apiKey", SECRET],
        ["-api-key", SECRET],
        [f"--api-key={SECRET}"],
        [f"--API_KEY={SECRET}"],
        [f"--wandb.api_key={SECRET}"],
        [f"+wandb.api_key={SECRET}"],
        [f"++auth.token={SECRET}"],
        ["--hf-token", SECRET],
        ["--token", SECRET],
        [f"--token={SECRET}"],
        [f"HF_TOKEN={SECRET}"],
        [f"hf_token={SECRET} with spaces"],
        ["--password", SECRET],
        [f"--db-password={SECRET} and more"],
        ["--passwd", SECRET],
        ["--pwd", SECRET],
        ["--client-secret", SECRET],
        ["--secret", SECRET],
        ["--aws-secret-access-key", SECRET],
        ["--passphrase", SECRET],
        ["--tokens", SECRET],
        ["--auth", SECRET],
        ["bash", "-c", f"export WANDB_API_KEY={SECRET}; python train.py"],
        ["bash", "-c", f"HF_TOKEN='{SECRET}' python train.py --lr 1"],
        ["bash", "-c", f"python train.py --api-key {SECRET} --lr 1"],
        ["bash", "-c", f'python train.py --password "{SECRET}"'],
        ["--config", f'{{"lr": 1, "api_key": "{SECRET}"}}'],
        ["--config", f"{{'token': '{SECRET}'}}"],
        ["--header", f"Authorization: Bearer {SECRET}"],
        ["--header", f"authorization: bearer {SECRET}"],
        ["--url", f"https://user:{SECRET}@host/path"],
        ["--url", f"postgres://me:{SECRET}@db:5432/x"],
        [f"--url=https://me:{SECRET}@host"],
        ["--url", f"https://host/x?access_token={SECRET}&page=2"],
    ],
)
def test_named_secrets_are_removed(argv):
    cleaned = redact(argv)
    assert len(cleaned) == len(argv)
    assert SECRET not in " ".join(cleaned)
    assert "***" in " ".join(cleaned)


SHAPES = [
    "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "sk-" + "proj-abcdefghij1234567890ABCDEF",
    "sk-" + "ant-api03-abcdefghij1234567890",
    "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "gho_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuv",
    "glpat-" + "abcdefghij-ABCDEFGH12",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "xoxb-" + "123456789012-abcdefghijkl",
    "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0" + ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
]


@pytest.mark.parametrize("token", SHAPES)
@pytest.mark.parametrize(
    "where", ["{}", "--anything={}", "prefix {} suffix", '"{}"', "https://{}@github.com/x", "a={},b=2"]
)
def test_known_shapes_are_removed_wherever_they_are(token, where):
    assert token not in redact([where.format(token)])[0]
    assert token not in redact(["--whatever", where.format(token)])[1]


@pytest.mark.parametrize(
    "argv",
    [
        ["train.py", "--lr", "0.1", "--epochs=3"],
        ["--tokenizer", "gpt2", "--tokenizer-path=/data/tok"],
        ["--max-tokens", "512", "--num_tokens=1e9", "--tokens", "300B"],
        ["--key-dim", "64", "--num-key-value-heads", "8", "--n_keys=12"],
        ["--use-auth-token", "--lr", "0.1"],
        ["https://github.com/x/y.git", "git@github.com:x/y.git", "ssh://git@github.com/x"],
        ["-m", "pkg.mod", "--data", "C:\\data\\x", "--rdzv-endpoint=host:29500"],
        ["--mask", "sk-learn", "--name=hf_model", "hf_small"],
        ["--commit", "0123456789abcdef0123456789abcdef01234567"],
        ["--betas", "(0.9,", "0.999)"],
        ["a=1", "optim.lr=0.1", "model/key_size=3"],
        [],
    ],
)
def test_ordinary_arguments_stay_byte_for_byte(argv):
    assert redact(argv) == argv


def test_a_flag_that_only_sounds_secret_does_not_hide_the_next_option():
    assert redact(["--save-token", "--lr", "0.1"]) == ["--save-token", "--lr", "0.1"]


@given(st.lists(st.text(max_size=40), max_size=6))
def test_any_arguments_keep_their_number_and_a_second_pass_changes_nothing(argv):
    once = redact(argv)
    assert len(once) == len(argv)
    assert redact(once) == once


@given(st.text(alphabet="-=:/@ .?&'\"{}[]token_keyABC123\\\n", max_size=200))
def test_text_made_of_marks_is_taken_in_linear_time(text):
    assert isinstance(redact_text(text), str)


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a-",
        "a.",
        ".-a",
        "eyJaaaaaaaa-",
        "sk-",
        "a=",
        "--key ",
        'key="',
        "x://",
        "Bearer ",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_a_very_long_argument_takes_no_longer_than_its_length(piece):
    start = time.perf_counter()
    redact([piece * (120_000 // len(piece))])
    assert time.perf_counter() - start < 5
