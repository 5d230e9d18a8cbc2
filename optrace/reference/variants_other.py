"""What wrong implementations of Adadelta, Rprop, Adafactor, Muon and Lion most likely do (see `variants`)."""

from __future__ import annotations

from optrace.reference.variant import Line, table

_ROOTS = "adds eps inside both roots, sqrt(u + eps)/sqrt(v + eps)"
_BOTH = "use sqrt(u + {eps})/sqrt(v + {eps}) * g"
_PAST = "uses the deltas of the steps before, without lr"
_ADADELTA: tuple[Line, ...] = (
    ("eps-outside", "rule-eps", "adds eps after the roots", _ROOTS, _BOTH, {"eps": "outside"}),
    ("eps-missing", "rule-eps", "leaves eps out, so that it never moves", _ROOTS, _BOTH, {"eps": "missing"}),
    (
        "deltas-scaled",
        "rule-unknown",
        "averages the squares of lr*delta",
        _PAST,
        "average delta*delta, and multiply by lr only when the parameter moves",
        {"deltas": "scaled"},
    ),
    (
        "deltas-at-once",
        "rule-unknown",
        "counts the delta of a step before using it",
        _PAST,
        "update acc_delta after delta",
        {"deltas": "after"},
    ),
    (
        "no-deltas",
        "rule-unknown",
        "divides by sqrt(v + eps) alone, as RMSprop does",
        _PAST,
        "multiply by sqrt(acc_delta + eps)",
        {"deltas": "none"},
    ),
    (
        "share-exchanged",
        "rule-betas",
        "keeps 1 - rho of the old averages",
        "keeps rho={rho} of them",
        "exchange rho and 1 - rho",
        {"share": "exchanged"},
    ),
    (
        "no-lr",
        "rule-unknown",
        "ignores lr",
        "multiplies the delta by lr",
        "multiply the delta by lr",
        {"lr": "ignored"},
    ),
)

_RESTS = "rests for one step where the gradient changed its sign, and forgets it"
_RPROP: tuple[Line, ...] = (
    (
        "moves-after-turn",
        "rule-unknown",
        "moves where the gradient changed its sign",
        _RESTS,
        "set g to 0 where g*prev < 0, before the move",
        {"turn": "go-on"},
    ),
    (
        "remembers-turn",
        "rule-unknown",
        "remembers the gradient that changed its sign",
        _RESTS,
        "keep the zeroed gradient as prev",
        {"turn": "keep"},
    ),
    (
        "steps-back",
        "rule-unknown",
        "takes the last move back where the gradient changed its sign",
        _RESTS,
        "leave such elements where they are",
        {"turn": "back"},
    ),
    (
        "etas-exchanged",
        "rule-unknown",
        "exchanges the two etas",
        "shrinks by the first and grows by the second",
        "exchange the etas",
        {"etas": "exchanged"},
    ),
    (
        "no-limits",
        "rule-unknown",
        "does not limit the step sizes",
        "keeps them within step_sizes",
        "clamp step_size to step_sizes",
        {"limits": "none"},
    ),
)

_FACTORS = "divides row_var @ col_var by the mean of row_var"
_CLIPS = "divides the update by max(1, rms(update)/d)"
_SCALES = "multiplies the step by max(eps2, rms(param))"
_ADAFACTOR: tuple[Line, ...] = (
    ("not-clipped", "rule-unknown", "does not clip the update", _CLIPS, "clip by rms(update)/d", {"clip": "missing"}),
    (
        "clipped-by-norm",
        "rule-unknown",
        "clips by the norm of the update",
        _CLIPS,
        "divide the norm by the root of the number of elements",
        {"clip": "norm"},
    ),
    (
        "not-scaled",
        "rule-unknown",
        "does not scale the step by the parameter (scale_parameter=False)",
        _SCALES,
        "multiply by max(eps2, rms(param))",
        {"scale": "missing"},
    ),
    (
        "scaled-by-norm",
        "rule-unknown",
        "scales the step by the norm of the parameter",
        _SCALES,
        "divide the norm by the root of the number of elements",
        {"scale": "norm"},
    ),
    (
        "not-relative",
        "rule-unknown",
        "uses lr as it is (relative_step=False)",
        "uses min(lr, 1/sqrt(t))",
        "limit lr to 1/sqrt(t)",
        {"relative": "missing"},
    ),
    (
        "constant-beta2",
        "rule-betas",
        "gives each square the weight 0.001, as Adam does",
        "gives it t^{beta2_decay}",
        "weigh the newest square by t**{beta2_decay}",
        {"newest": 0.001},
    ),
    (
        "not-factored",
        "rule-unknown",
        "keeps the second moment of matrices whole",
        "keeps its rows and columns",
        "factor the second moment of what has two dimensions or more",
        {"factored": "never"},
    ),
    (
        "middle-missing",
        "rule-unknown",
        "multiplies row_var and col_var alone",
        _FACTORS,
        "divide by the mean of row_var",
        {"middle": "missing"},
    ),
    (
        "eps1-not-squared",
        "rule-eps",
        "takes eps1 as the least variance",
        "takes its square",
        "use max(V, eps1*eps1)",
        {"floor": "plain"},
    ),
    (
        "decay-relative",
        "rule-decay-coupling",
        "shrinks the parameter by the relative step times weight_decay",
        "shrinks it by lr*{weight_decay}",
        "use lr itself for weight decay",
        {"decay": "relative"},
    ),
)

_AVERAGES = "averages the gradient, buf = {momentum}*buf + {rest_momentum}*g"
_SHAPES = "multiplies lr by sqrt(max(1, rows/columns))"
_MUON: tuple[Line, ...] = (
    (
        "sums",
        "rule-momentum-form",
        "sums the gradient, buf = {momentum}*buf + g",
        _AVERAGES,
        "multiply the gradient by (1 - momentum)",
        {"momentum": "sum"},
    ),
    (
        "no-nesterov",
        "rule-nesterov",
        "moves along the buffer",
        "looks ahead, {rest_momentum}*g + {momentum}*buf",
        "blend the gradient with the buffer",
        {"nesterov": "off"},
    ),
    (
        "nesterov",
        "rule-nesterov",
        "looks ahead, {rest_momentum}*g + {momentum}*buf",
        "moves along the buffer",
        "move along buf, or set nesterov=True in torch",
        {"nesterov": "on"},
    ),
    (
        "nesterov-whole",
        "rule-nesterov",
        "adds the whole gradient, g + {momentum}*buf",
        "blends it, {rest_momentum}*g + {momentum}*buf",
        "multiply the gradient by (1 - momentum)",
        {"nesterov": "whole"},
    ),
    (
        "iteration-more",
        "rule-unknown",
        "iterates once more",
        "iterates ns_steps={ns_steps} times",
        "iterate ns_steps times",
        {"iterations": 1},
    ),
    (
        "iteration-less",
        "rule-unknown",
        "iterates once less",
        "iterates ns_steps={ns_steps} times",
        "iterate ns_steps times",
        {"iterations": -1},
    ),
    (
        "shape-missing",
        "rule-unknown",
        "uses lr for every shape",
        _SHAPES,
        "multiply lr by sqrt(max(1, rows/columns))",
        {"shape": "missing"},
    ),
    (
        "shape-root-missing",
        "rule-unknown",
        "multiplies lr by max(1, rows/columns)",
        _SHAPES,
        "take the square root",
        {"shape": "root-missing"},
    ),
    (
        "shape-wide",
        "rule-unknown",
        "multiplies lr by sqrt(max(1, columns/rows))",
        _SHAPES,
        "exchange rows and columns",
        {"shape": "wide"},
    ),
    (
        "decay-adjusted",
        "rule-decay-coupling",
        "shrinks the parameter by the adjusted lr times weight_decay",
        "shrinks it by lr*{weight_decay}",
        "use lr itself for weight decay",
        {"decay": "adjusted"},
    ),
)

_LOOKS = "takes the sign of {beta1}*m + {rest_beta1}*g, then m = {beta2}*m + {rest_beta2}*g"
_LION: tuple[Line, ...] = (
    ("betas-swapped", "rule-betas", "exchanges the two betas", _LOOKS, "exchange the betas", {"betas": "swapped"}),
    (
        "beta1-for-both",
        "rule-betas",
        "uses beta1 twice",
        _LOOKS,
        "use beta2 for the average that is kept",
        {"betas": "first-for-both"},
    ),
    (
        "beta2-for-both",
        "rule-betas",
        "uses beta2 twice",
        _LOOKS,
        "use beta1 for the direction",
        {"betas": "second-for-both"},
    ),
    (
        "averages-first",
        "rule-momentum-form",
        "counts the gradient in m before it takes the sign",
        _LOOKS,
        "update m after the parameter",
        {"look": "after"},
    ),
    (
        "no-sign",
        "rule-unknown",
        "moves along the average itself, p = p - lr*({beta1}*m + {rest_beta1}*g)",
        _LOOKS,
        "take the sign of the average",
        {"move": "whole"},
    ),
)

ADADELTA = table("adadelta", _ADADELTA)
RPROP = table("rprop", _RPROP)
ADAFACTOR = table("adafactor", _ADAFACTOR)
MUON = table("muon", _MUON)
LION = table("lion", _LION)
