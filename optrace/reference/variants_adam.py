"""What wrong implementations of Adam's relatives most likely do: Adamax, NAdam, RAdam (see `variants`)."""

from __future__ import annotations

from optrace.reference.variant import Line, table

_COUNTS = "counts from 1 at the parameter's first step"
_USES = "uses betas ({beta1}, {beta2}) for the gradient and its square"
_SHARED: tuple[Line, ...] = (
    ("betas-swapped", "rule-betas", "exchanges the two betas", _USES, "exchange the betas", {"betas": "swapped"}),
    ("counter-ahead", "step-counter", "counts one step more", _COUNTS, "start t at 1, not 2", {"counter": 1}),
    ("counter-behind", "step-counter", "counts one step less", _COUNTS, "start t at 1, not 0", {"counter": -1}),
)
_SQUARES: tuple[Line, ...] = (
    ("absolute", "rule-unknown", "averages |g|", "averages g*g", "square the gradient", {"square": "absolute"}),
)

_INSIDE = "adds eps inside the maximum, u = max(beta2*u, |g| + eps)"
_FIRST = "divides lr by 1 - beta1^t, and leaves u as it is"
_LARGEST = "keeps the larger of beta2*u and |g|"
_EPS = "use max({beta2}*u, |g| + eps) as the divisor"
_ADAMAX: tuple[Line, ...] = (
    ("eps-outside", "rule-eps", "adds eps to the maximum, m/(u + eps)", _INSIDE, _EPS, {"eps": "outside"}),
    ("eps-missing", "rule-eps", "divides by the maximum alone, m/u", _INSIDE, _EPS, {"eps": "missing"}),
    (
        "no-correction",
        "rule-bias-correction",
        "corrects no bias",
        _FIRST,
        "divide lr by (1 - {beta1}**t)",
        {"bias": "none"},
    ),
    (
        "both-corrected",
        "rule-bias-correction",
        "divides u by 1 - beta2^t as Adam does",
        _FIRST,
        "leave u uncorrected: a maximum has no bias",
        {"bias": "both"},
    ),
    (
        "norm-undecayed",
        "rule-unknown",
        "keeps the largest |g| for ever, u = max(u, |g|)",
        _LARGEST,
        "multiply the old u by {beta2}",
        {"norm": "undecayed"},
    ),
    (
        "norm-averaged",
        "rule-unknown",
        "averages |g|, u = {beta2}*u + {rest_beta2}*|g|",
        _LARGEST,
        "take the maximum, not the average",
        {"norm": "average"},
    ),
)

_CORRECTS = "divides g by 1 - M and m by 1 - M*mu_(t+1), M the product of all mu so far"
_LOOKS = "moves along the gradient and the momentum, each with its own factor"
_OUTSIDE = "adds eps after the root, sqrt(v_hat) + eps"
_NADAM: tuple[Line, ...] = (
    (
        "no-look-ahead",
        "rule-nesterov",
        "moves along the momentum alone, as Adam does",
        _LOOKS,
        "add the term lr*(1 - mu_t)/(1 - M) * g/d",
        {"gradient": "missing"},
    ),
    (
        "present-momentum",
        "rule-nesterov",
        "uses mu_t for the momentum too",
        "uses mu_(t+1) for it",
        "use mu of the next step with m",
        {"ahead": "present"},
    ),
    (
        "no-schedule",
        "rule-bias-correction",
        "keeps mu at {beta1}",
        "lets it rise, mu_t = {beta1}*(1 - 0.5*0.96^(t*{momentum_decay}))",
        "apply momentum_decay={momentum_decay}",
        {"schedule": "constant"},
    ),
    (
        "power-for-product",
        "rule-bias-correction",
        "takes mu_t^t for the product",
        _CORRECTS,
        "keep a running product of mu in the state",
        {"product": "power"},
    ),
    (
        "second-uncorrected",
        "rule-bias-correction",
        "leaves the second moment uncorrected",
        "divides it by 1 - beta2^t",
        "divide v by (1 - {beta2}**t)",
        {"bias": "first"},
    ),
    (
        "eps-inside",
        "rule-eps",
        "adds eps inside the root, sqrt(v_hat + eps)",
        _OUTSIDE,
        "use sqrt(v_hat) + eps as the divisor",
        {"eps": "inside"},
    ),
    (
        "eps-missing",
        "rule-eps",
        "divides by sqrt(v_hat) alone",
        _OUTSIDE,
        "use sqrt(v_hat) + eps as the divisor",
        {"eps": "missing"},
    ),
)

_RECTIFIES = "multiplies the update by r from rho > 5 on"
_BEFORE = "adds eps before bias correction, (sqrt(v) + eps)/sqrt(1 - beta2^t)"
_PLACE = "use (sqrt(v) + eps)/sqrt(1 - {beta2}**t) as the divisor"
_RADAM: tuple[Line, ...] = (
    (
        "eps-outside",
        "rule-eps",
        "adds eps after bias correction, as Adam does",
        _BEFORE,
        _PLACE,
        {"eps": "outside"},
    ),
    ("eps-inside", "rule-eps", "adds eps inside the root, sqrt(v_hat + eps)", _BEFORE, _PLACE, {"eps": "inside"}),
    ("eps-missing", "rule-eps", "divides by sqrt(v_hat) alone", _BEFORE, _PLACE, {"eps": "missing"}),
    (
        "no-rectifier",
        "rule-unknown",
        "does not rectify the update",
        _RECTIFIES,
        "multiply by r",
        {"rectifier": "missing"},
    ),
    (
        "rectifier-inverted",
        "rule-unknown",
        "divides the update by r",
        _RECTIFIES,
        "multiply by r, do not divide",
        {"rectifier": "inverted"},
    ),
    (
        "rests-at-first",
        "rule-unknown",
        "does not move while rho <= 5",
        "moves by lr*m_hat then",
        "move along m_hat, without v, while rho <= 5",
        {"below": "nothing"},
    ),
    (
        "uncorrected-at-first",
        "rule-bias-correction",
        "moves by lr*m while rho <= 5",
        "moves by lr*m_hat then",
        "divide m by (1 - {beta1}**t) there too",
        {"below": "uncorrected"},
    ),
    (
        "threshold-4",
        "rule-unknown",
        "rectifies from rho > 4 on, as the paper does",
        _RECTIFIES,
        "begin at rho > 5",
        {"threshold": 4.0},
    ),
    (
        "rho-without-1",
        "rule-unknown",
        "takes rho_inf = 2/(1 - beta2)",
        "takes rho_inf = 2/(1 - beta2) - 1",
        "subtract 1 from rho_inf",
        {"longest": 1.0},
    ),
    (
        "first-uncorrected",
        "rule-bias-correction",
        "leaves the first moment uncorrected",
        "divides it by 1 - beta1^t",
        "divide m by (1 - {beta1}**t)",
        {"bias": "none"},
    ),
)

ADAMAX = table("adamax", (*_ADAMAX, *_SHARED))
NADAM = table("nadam", (*_NADAM, *_SHARED, *_SQUARES))
RADAM = table("radam", (*_RADAM, *_SHARED, *_SQUARES))
