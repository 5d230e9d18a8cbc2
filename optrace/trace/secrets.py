"""Taking secrets out of command lines before they are stored: better one harmless value hidden than one token kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

REMOVED = "***"
"""What stands in the place of a secret."""

_ANYWHERE = re.compile(r"passw(or)?d|passphrase|secret|api_?key|credential|signature|privatekey|accesskey|webhook")
_AT_END = re.compile(r"(token|key|pwd|auth|authorization|bearer|cookie)$|^(pat|pw|pass)$")
_PLURAL = re.compile(r"(token|key)s$")
_NUMBER = re.compile(r"[-+]?[0-9][0-9_.eE+-]*[kKmMgGtTbB]?")

# The published shapes of tokens; each needs its prefix and enough characters, so that ordinary words stay.
_SHAPES = re.compile(
    r"""
      \b hf_[A-Za-z0-9]{16,} | \b api_org_[A-Za-z0-9]{16,}                  # Hugging Face
    | \b sk-[A-Za-z0-9_-]{16,} | \b [sr]k_(?:live|test)_[A-Za-z0-9]{10,}     # OpenAI, Anthropic, Stripe
    | \b gh[pousr]_[A-Za-z0-9]{20,} | \b github_pat_[A-Za-z0-9_]{20,}        # GitHub
    | \b gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[A-Za-z0-9_-]{16,}                  # GitLab
    | \b (?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b                               # AWS
    | \b AIza[0-9A-Za-z_-]{30,} | \b ya29\.[0-9A-Za-z_-]{16,}                # Google
    | \b xox[a-z]-[A-Za-z0-9-]{10,} | \b xapp-[A-Za-z0-9-]{10,}              # Slack
    | \b npm_[A-Za-z0-9]{30,} | \b pypi-[A-Za-z0-9_-]{30,}                   # registries
    | (?<![\w-]) eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*             # JSON web tokens
    | -----BEGIN[ A-Z]*PRIVATE[ ]KEY-----.*?(?:-----END[ A-Z]*PRIVATE[ ]KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_SCHEME = re.compile(r"\b(Bearer|Basic)(\s+|%20)[A-Za-z0-9._~+/=%-]{6,}", re.IGNORECASE)
_URL = re.compile(r"((?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://)([^\s/@?#'\"]*)@")
_PAIR = re.compile(
    r"""(?P<name>(?<![\w.-])-*[A-Za-z_][\w.-]*)(?P<mark>["']?\s*(?:=|:(?!//))\s*)"""
    r"""(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'&;,{}\[\]]+)"""
)
_OPTION = re.compile(r"(?P<name>(?:--?|\+\+?|~)?[A-Za-z_][\w./-]*)(?P<mark>=)(?P<value>.*)", re.DOTALL)
_WORDED = re.compile(r"""(?P<name>(?<![\w.-])--?[A-Za-z_][\w.-]*)(?P<mark>\s+)(?P<value>"[^"]*"|'[^']*'|[^\s"'-]\S*)""")


def redact(argv: Sequence[str]) -> list[str]:
    """The same arguments with secret values as `***`: after options and names that speak of tokens, keys, secrets or
    passwords (`--api-key X`, `--api-key=X`, `HF_TOKEN=X`), and wherever a known shape of token, a bearer header or a
    password in a URL occurs.
    """
    cleaned: list[str] = []
    option: str | None = None  # the last argument, when the next one is its secret
    for argument in argv:
        if option is not None and not (argument.startswith("-") and len(argument) > 1):
            cleaned.append(argument if _innocent(option, argument) else REMOVED)
            option = None
            continue
        option = argument if argument.startswith("-") and "=" not in argument and names_secret(argument) else None
        cleaned.append(redact_text(argument))
    return cleaned


def redact_text(text: str) -> str:
    """One argument, or any text, with the secrets that can be told from it alone as `***`."""
    whole = _OPTION.fullmatch(text)
    if whole is not None and names_secret(whole["name"]) and not _innocent(whole["name"], whole["value"]):
        return whole["name"] + whole["mark"] + REMOVED
    text = _SHAPES.sub(REMOVED, text)
    text = _SCHEME.sub(lambda match: f"{match[1]} {REMOVED}", text)
    text = _URL.sub(_without_password, text)
    text = _PAIR.sub(_without_value, text)
    return _WORDED.sub(_without_value, text)


def names_secret(name: str) -> bool:
    """Whether an option, variable or key of this name is expected to hold a secret."""
    words = re.sub(r"[^a-z0-9]", "", name.lower())
    return bool(_ANYWHERE.search(words) or _AT_END.search(words) or _PLURAL.search(words))


def _innocent(name: str, value: str) -> bool:
    """`--max-tokens 512` counts tokens: a number after a plural is none."""
    words = re.sub(r"[^a-z0-9]", "", name.lower())
    return bool(_PLURAL.search(words)) and not _ANYWHERE.search(words) and bool(_NUMBER.fullmatch(value))


def _without_value(match: re.Match[str]) -> str:
    value = match["value"]
    if not names_secret(match["name"]) or _innocent(match["name"], value.strip("\"'")):
        return match[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{match['name']}{match['mark']}{quote}{REMOVED}{quote}"


def _without_password(match: re.Match[str]) -> str:
    user, colon, _ = match[2].partition(":")
    if colon:
        return f"{match[1]}{user if len(user) < 16 else REMOVED}:{REMOVED}@"
    return f"{match[1]}{user if len(user) < 16 else REMOVED}@"
