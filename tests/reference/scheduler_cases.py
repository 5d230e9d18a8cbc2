"""Option sets of every scheduler: each case is one that some wrong implementation would get wrong."""

from __future__ import annotations

from .scheduler_pairs import case


def inverse(epoch: float) -> float:
    return 1 / (1 + 0.3 * epoch)


def nearly_one(epoch: float) -> float:
    return 0.97 + 0.001 * (epoch % 7)


def shrinking(x: float) -> float:
    return 1 / (1.4**x)


# At least 45 steps without an error.
LASTING = [
    case("LambdaLR", lr_lambda=inverse),
    case("LambdaLR", lr_lambda=[inverse, nearly_one, lambda epoch: 0.95**epoch]),
    case("MultiplicativeLR", lr_lambda=nearly_one),
    case("MultiplicativeLR", lr_lambda=(nearly_one, inverse, lambda epoch: 1.0)),
    case("StepLR", step_size=1),
    case("StepLR", step_size=7, gamma=0.3),
    case("StepLR", step_size=30, gamma=1.1),
    case("MultiStepLR", milestones=[3, 30]),
    case("MultiStepLR", milestones=[30, 4, 4, 4, 9], gamma=0.7),
    case("MultiStepLR", milestones=[0, 0, 5], gamma=0.9),
    case("MultiStepLR", milestones=[]),
    case("ConstantLR"),
    case("ConstantLR", factor=0.7, total_iters=13),
    case("ConstantLR", factor=0.3, total_iters=0),
    case("ConstantLR", factor=1.0, total_iters=1),
    case("LinearLR"),
    case("LinearLR", start_factor=0.1, end_factor=0.9, total_iters=50),
    case("LinearLR", start_factor=1.0, end_factor=0.0, total_iters=17),
    case("LinearLR", start_factor=0.77, end_factor=0.77, total_iters=3),
    case("LinearLR", start_factor=0.25, total_iters=0),
    case("ExponentialLR", gamma=0.97),
    case("ExponentialLR", gamma=1.02),
    case("ExponentialLR", gamma=0),
    case("PolynomialLR"),
    case("PolynomialLR", total_iters=40, power=2.0),
    case("PolynomialLR", total_iters=23, power=0.37),
    case("PolynomialLR", total_iters=0),
    case("PolynomialLR", total_iters=1, power=3),
    case("CosineAnnealingLR", T_max=10),
    case("CosineAnnealingLR", T_max=1, eta_min=0.01),
    case("CosineAnnealingLR", T_max=17, eta_min=1e-5),
    case("CosineAnnealingLR", T_max=5, eta_min=0.2),
    case("CosineAnnealingLR", T_max=7.5),
    case("CosineAnnealingWarmRestarts", T_0=10),
    case("CosineAnnealingWarmRestarts", T_0=1, T_mult=2),
    case("CosineAnnealingWarmRestarts", T_0=3, T_mult=3, eta_min=1e-4),
    case("CosineAnnealingWarmRestarts", T_0=1),
    case("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=5),
    case("CyclicLR", "momentum", base_lr=[0.01, 1e-8, 0.3], max_lr=[0.1, 1e-7, 0.2], step_size_up=4, step_size_down=9),
    case("CyclicLR", "momentum", base_lr=0.001, max_lr=0.3, step_size_up=9, step_size_down=2, mode="triangular2"),
    case("CyclicLR", "adam", base_lr=0.01, max_lr=0.1, step_size_up=3, mode="exp_range", gamma=0.99),
    case("CyclicLR", "adam", base_lr=0.01, max_lr=0.1, base_momentum=[0.7, 0.8, 0.85], max_momentum=[0.9, 0.95, 0.9]),
    case("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=6, scale_fn=shrinking, mode="none of the three"),
    case("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=6, scale_fn=shrinking, scale_mode="iterations"),
    case("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=6, cycle_momentum=False, scale_mode="iterations"),
    case("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=5, step_size_down=0),
    case("OneCycleLR", max_lr=0.1, total_steps=100),
    case("OneCycleLR", "momentum", max_lr=[0.1, 0.2, 1e-6], epochs=9, steps_per_epoch=11, anneal_strategy="linear"),
    case("OneCycleLR", "adam", max_lr=0.3, total_steps=60, pct_start=0.25, three_phase=True),
    case("OneCycleLR", "adam", max_lr=0.3, total_steps=61, pct_start=0.4, three_phase=True, anneal_strategy="linear"),
    case("OneCycleLR", max_lr=0.3, total_steps=50, cycle_momentum=False, div_factor=3.0, final_div_factor=7.0),
    case("OneCycleLR", max_lr=0.3, total_steps=50, pct_start=0.0, base_momentum=[0.1, 0.2, 0.3], max_momentum=0.9),
    case("OneCycleLR", max_lr=0.3, total_steps=50, pct_start=1.0),
    case("SWALR", swa_lr=0.05),
    case("SWALR", swa_lr=[0.05, 0.06, 0.07], anneal_epochs=7, anneal_strategy="linear"),
    case("SWALR", swa_lr=0.05, anneal_epochs=0),
    case("SWALR", swa_lr=0.05, anneal_epochs=1, anneal_strategy="linear"),
]

# torch divides by zero, or runs out of steps.
SHORT_LIVED = [
    case("ConstantLR", factor=0, total_iters=4),
    case("OneCycleLR", max_lr=0.3, total_steps=10, pct_start=0.1),
    case("OneCycleLR", max_lr=0.3, total_steps=1, pct_start=0.5),
]
SINGLE = LASTING + SHORT_LIVED

# Where rounding has time to add up.
LONG = [
    case("CosineAnnealingLR", T_max=50, eta_min=1e-4),
    case("CosineAnnealingLR", T_max=7),
    case("CosineAnnealingWarmRestarts", T_0=7, T_mult=2),
    case("OneCycleLR", max_lr=0.3, total_steps=9_999),
    case("ExponentialLR", gamma=0.9999),
    case("LinearLR", start_factor=0.001, total_iters=9_000),
    case("PolynomialLR", total_iters=9_000, power=0.9),
    case("MultiplicativeLR", lr_lambda=nearly_one),
    case("StepLR", step_size=11, gamma=0.99),
    case(
        "CyclicLR", "adam", base_lr=0.01, max_lr=0.1, step_size_up=37, step_size_down=11, mode="exp_range", gamma=0.999
    ),
    case("SWALR", swa_lr=0.05, anneal_epochs=9_000),
]
