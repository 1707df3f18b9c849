"""The optimizer against a slow reference, against torch, and against bad input."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW, attach, param_groups, update
from gnlorp.reference import ReferenceOptions, ReferenceState, reference_step

SHAPES = {"tall": (14, 6), "wide": (6, 14), "square": (8, 8)}


def stream(shape, steps, seed=0, dtype=torch.float64):
    """Return gradients that drift, so that bases turn from one refresh to the next."""
    generator = torch.Generator().manual_seed(seed)
    base, drift = (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    for step in range(steps):
        noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
        yield (base + 0.1 * step * drift + 0.3 * noise).to(dtype)


def run(optimizer, weight, grads):
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("side", ["small", "large", "both"])
@pytest.mark.parametrize("moments", ["keep", "rotate", "reset"])
@pytest.mark.parametrize("rank", [1, 3])
def test_every_step_equals_the_reference_across_refreshes(shape, side, moments, rank):
    options = {
        "lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "projection_rank": rank,
        "refresh_gap": 9, "scale": 0.7, "side": side, "moments": moments,
    }  # fmt: skip
    torch.manual_seed(1)
    slow = torch.randn(shape, dtype=torch.float64)
    fast = nn.Parameter(slow.clone())
    optimizer = GradNormLoRPAdamW([fast], **options)
    state = ReferenceState()
    for step, grad in enumerate(stream(shape, 50)):
        slow = reference_step(slow, grad, state, ReferenceOptions(**options))
        fast.grad = grad.clone()
        optimizer.step()
        assert torch.allclose(fast, slow, rtol=0, atol=1e-8), step
        assert optimizer.last_refreshed == (step % 9 == 0)


def test_steps_on_warm_bases_equal_the_reference_on_the_same_bases():
    torch.manual_seed(0)
    fast = nn.Parameter(torch.randn(300, 260, dtype=torch.float64))
    optimizer = GradNormLoRPAdamW([fast], lr=0.02, projection_rank=4, refresh_gap=3, basis="warm")
    state, slow = ReferenceState(step=0), fast.detach().clone()
    for step, grad in enumerate(stream(fast.shape, 8)):
        fast.grad = grad.clone()
        optimizer.step()
        found = optimizer.state[fast]
        assert optimizer.last_refreshed == (step % 3 == 0)
        if optimizer.last_refreshed:
            kept = (grad @ found["basis_right"]).square().sum()
            assert kept > 0.999 * torch.linalg.svdvals(grad)[:4].square().sum()
        state.right = found["basis_right"].clone()
        if step == 0:
            state.step, state.first, state.second = 1, found["exp_avg"].clone(), found["exp_avg_sq"].clone()
            slow = fast.detach().clone()
        else:
            slow = reference_step(slow, grad, state, ReferenceOptions(lr=0.02, projection_rank=4, refresh_gap=10**9))
        assert torch.allclose(fast, slow, rtol=0, atol=1e-10)


def test_plain_groups_equal_torch_bit_for_bit():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        ours = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(7, 5), (9,), (2, 3, 4), ()]]
        theirs = copy.deepcopy(ours)
        options = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.2}
        pair = (GradNormLoRPAdamW(ours, **options), torch.optim.AdamW(theirs, fused=True, **options))
        for _ in range(20):
            for a, b in zip(ours, theirs, strict=True):
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
            for optimizer in pair:
                optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(9, 1), (1, 9)])
def test_a_full_side_of_one_equals_torch(shape):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.01, "weight_decay": 0.1}
    grads = list(stream(shape, 30))
    run(GradNormLoRPAdamW([ours], projection_rank=1, allow_full_rank=True, refresh_gap=4, **options), ours, grads)
    run(torch.optim.AdamW([theirs], **options), theirs, grads)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_projection_onto_a_full_side_is_torch_in_turned_coordinates(shape):
    torch.manual_seed(0)
    start = torch.randn(shape, dtype=torch.float64)
    ours = nn.Parameter(start.clone())
    options = {"lr": 0.01, "weight_decay": 0.1}
    grads = list(stream(shape, 30))
    optimizer = GradNormLoRPAdamW([ours], projection_rank=min(shape), allow_full_rank=True, refresh_gap=99, **options)
    run(optimizer, ours, grads)
    state = optimizer.state[ours]
    left = state.get("basis_left", torch.eye(shape[0], dtype=torch.float64))
    right = state.get("basis_right", torch.eye(shape[1], dtype=torch.float64))
    turned = nn.Parameter(left.T @ start @ right)
    run(torch.optim.AdamW([turned], **options), turned, [left.T @ grad @ right for grad in grads])
    assert torch.allclose(ours, left @ turned @ right.T, rtol=0, atol=1e-10)


def test_an_axis_aligned_full_side_equals_torch():
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(6, 6, dtype=torch.float64))
    theirs = copy.deepcopy(ours)
    first = torch.diag(torch.arange(6, 0, -1, dtype=torch.float64))
    grads = [first, *stream((6, 6), 30)]
    run(GradNormLoRPAdamW([ours], projection_rank=6, allow_full_rank=True, refresh_gap=99, lr=0.01), ours, grads)
    run(torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.0), theirs, grads)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["small", "large", "both"])
def test_float32_follows_double_precision(side):
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(60, 40, dtype=torch.float64).to(dtype))
        start = weight.detach().clone()
        options = {"lr": 0.01, "projection_rank": 6, "refresh_gap": 200, "side": side}
        found.append(
            (run(GradNormLoRPAdamW([weight], **options), weight, stream((60, 40), 20, dtype=dtype)) - start).double()
        )
    assert (found[0] - found[1]).norm() / found[1].norm() < 1e-3


def test_undamped_noise_would_part_float32_from_double_precision():
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.zeros(60, 40, dtype=dtype))
        optimizer = GradNormLoRPAdamW([weight], lr=0.01, projection_rank=6, side="both")
        weight.grad = next(stream((60, 40), 1, dtype=dtype))
        optimizer.step()
        bases = optimizer.state[weight]
        low = bases["basis_left"].T @ weight.detach() @ bases["basis_right"]
        off = low - torch.diag(torch.diag(low))
        assert off.abs().max() < 1e-3 * low.abs().max()
        raw = bases["basis_left"].T @ weight.grad @ bases["basis_right"]
        found.append((raw - torch.diag(torch.diag(raw))).abs().max() / raw.abs().max())
    assert 0 < found[0] < 1e-5
    assert found[1] < 1e-12


def test_bases_stay_orthonormal_and_change_only_at_a_refresh():
    weight = nn.Parameter(torch.zeros(30, 12))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=4, refresh_gap=5, side="both")
    previous = None
    for step, grad in enumerate(stream((30, 12), 21, dtype=torch.float32)):
        weight.grad = grad
        optimizer.step()
        state = optimizer.state[weight]
        for name in ("basis_left", "basis_right"):
            assert (state[name].T @ state[name] - torch.eye(4)).abs().max() < 1e-5
        current = (state["basis_left"].clone(), state["basis_right"].clone())
        if previous is not None:
            same = all(torch.equal(a, b) for a, b in zip(current, previous, strict=True))
            assert same == (step % 5 != 0)
        assert optimizer.last_refreshed == (step % 5 == 0)
        previous = current


def test_the_moment_rules_do_what_they_say():
    torch.manual_seed(0)
    grads = list(stream((20, 8), 4))
    states = {}
    for rule in ("keep", "rotate", "reset"):
        weight = nn.Parameter(torch.zeros(20, 8, dtype=torch.float64))
        optimizer = GradNormLoRPAdamW([weight], projection_rank=8, allow_full_rank=True, refresh_gap=3, moments=rule)
        run(optimizer, weight, grads[:3])
        old = copy.deepcopy(optimizer.state[weight])
        run(optimizer, weight, grads[3:])
        states[rule] = (old, optimizer.state[weight])
    grad = grads[3]
    for rule, (old, new) in states.items():
        projected = grad @ new["basis_right"]
        before = (new["exp_avg"] - 0.1 * projected) / 0.9
        if rule == "keep":
            assert torch.allclose(before, old["exp_avg"])
        elif rule == "reset":
            assert torch.allclose(before, torch.zeros_like(before), atol=1e-12)
            assert new["step"] == 1
        else:
            # A full basis loses nothing: the first moment is the same matrix in full space.
            assert torch.allclose(before @ new["basis_right"].T, old["exp_avg"] @ old["basis_right"].T)
            second = (new["exp_avg_sq"] - 0.001 * projected**2) / 0.999
            assert (second > 0).all()
            assert torch.allclose(second.sum(1), old["exp_avg_sq"].sum(1))
            assert not torch.allclose(second, old["exp_avg_sq"], rtol=1e-2)


def test_a_zero_gradient_waits_for_a_basis_and_still_decays():
    weight = nn.Parameter(torch.ones(6, 4))
    optimizer = GradNormLoRPAdamW([weight], lr=0.1, weight_decay=0.5, projection_rank=2, refresh_gap=3)
    weight.grad = torch.zeros(6, 4)
    optimizer.step()
    assert torch.allclose(weight, torch.full((6, 4), 0.95))
    state = optimizer.state[weight]
    assert state["step"] == 0
    assert not any(value.any() for value in state.values() if isinstance(value, torch.Tensor))
    assert not optimizer.last_refreshed
    weight.grad = next(stream((6, 4), 1, dtype=torch.float32))
    optimizer.step()
    assert optimizer.last_refreshed
    assert torch.linalg.matrix_rank(optimizer.state[weight]["basis_right"]) == 2


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_bases_of_very_small_and_very_large_gradients(size):
    weight = nn.Parameter(torch.zeros(12, 5))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=2)
    grad = next(stream((12, 5), 1, dtype=torch.float32))
    weight.grad = grad * size
    optimizer.step()
    basis = optimizer.state[weight]["basis_right"]
    assert ((grad @ basis).square().sum() / torch.linalg.svdvals(grad)[:2].square().sum()) > 0.9999


def test_many_parameters_in_chunks_equal_one_by_one(monkeypatch):
    monkeypatch.setattr("gnlorp.update.CHUNK_VALUES", 100)
    monkeypatch.setattr("gnlorp.update.STACKED_VALUES", 80)
    shapes = [(14, 6), (6, 14), (8, 8), (14, 6), (30, 4)]
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = copy.deepcopy(together)
    options = {"lr": 0.02, "projection_rank": 2, "refresh_gap": 4, "weight_decay": 0.1}
    joint = GradNormLoRPAdamW(together, **options)
    single = [GradNormLoRPAdamW([weight], **options) for weight in alone]
    streams = [list(stream(shape, 12, seed, torch.float32)) for seed, shape in enumerate(shapes)]
    for grads in zip(*streams, strict=True):
        for a, b, grad in zip(together, alone, grads, strict=True):
            a.grad, b.grad = grad.clone(), grad.clone()
        joint.step()
        for optimizer in single:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_a_refresh_holds_the_new_bases_of_one_round_beside_the_old_ones(monkeypatch):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(12, 6)) for _ in range(5)]
    optimizer = GradNormLoRPAdamW(weights, projection_rank=2, refresh_gap=1)
    old: list[weakref.ref] = []
    alive: list[tuple[int, int]] = []
    fit = update.fit

    def watched(grads, *rest):
        alive.append((len(grads), sum(basis() is not None for basis in old)))
        return fit(grads, *rest)

    monkeypatch.setattr(update, "fit", watched)
    monkeypatch.setattr(update, "STACKED_VALUES", 2 * 6 * 6)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.randn(12, 6)
        alive.clear()
        optimizer.step()
        old = [weakref.ref(optimizer.state[weight]["basis_right"]) for weight in weights]
    assert alive == [(2, 5), (2, 3), (1, 1)]


def test_bf16_weights_have_float32_moments_and_follow_float32():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(60, 40, dtype=torch.bfloat16))
    exact = nn.Parameter(weight.detach().float())
    start = exact.detach().clone()
    options = {"lr": 0.05, "projection_rank": 6, "refresh_gap": 5}
    optimizer = GradNormLoRPAdamW([weight], **options)
    low = run(optimizer, weight, stream((60, 40), 12, dtype=torch.bfloat16))
    high = run(GradNormLoRPAdamW([exact], **options), exact, stream((60, 40), 12, dtype=torch.float32))
    assert {value.dtype for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)} == {
        torch.float32
    }
    assert (low.float() - high).norm() / (high - start).norm() < 0.1


def test_a_gradient_laid_out_otherwise_gives_the_same():
    torch.manual_seed(0)
    for rank in (None, 2):
        found = []
        for turn in (False, True):
            weight = nn.Parameter(torch.ones(7, 5))
            grad = next(stream((7, 5), 1, dtype=torch.float32))
            weight.grad = grad.T.contiguous().T if turn else grad
            GradNormLoRPAdamW([weight], projection_rank=rank).step()
            found.append(weight.detach())
        assert torch.allclose(*found, atol=1e-6)


def test_accumulated_micro_batches_equal_one_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6)).double()
    attach(model, ["0", "2"], 4, 8.0)
    other = copy.deepcopy(model)
    x, y = torch.randn(8, 12, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    for net, parts in ((model, 1), (other, 4)):
        optimizer = GradNormLoRPAdamW(param_groups(net, 2, lr=0.01, refresh_gap=3))
        for _ in range(8):
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                ((net(a) - b).square().mean() / parts).backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_a_citizen_of_torch_optim():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(9, 5)), nn.Parameter(torch.randn(5))]
    optimizer = GradNormLoRPAdamW([{"params": weights[:1], "projection_rank": 2, "lr": 0.5}], lr=0.1)
    optimizer.add_param_group({"params": weights[1:]})
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert optimizer.param_groups[1]["projection_rank"] is None
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure():
        optimizer.zero_grad()
        loss = sum(weight.square().sum() for weight in weights)
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(optimizer.step(closure).item())
        schedule.step()
    assert losses[0] > losses[1] > losses[2]
    assert optimizer.param_groups[0]["lr"] == 0.0625
    hooked = []
    optimizer.register_step_post_hook(lambda *_: hooked.append(1))
    optimizer.step()
    assert hooked
    copied = pickle.loads(pickle.dumps(optimizer))
    assert copied.max_skips == optimizer.max_skips
    assert copy.deepcopy(optimizer).skipped_steps == 0


def test_the_norm_of_the_last_gradient():
    weights = [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(2))]
    optimizer = GradNormLoRPAdamW([{"params": weights[:1], "projection_rank": 1}, {"params": weights[1:]}])
    assert optimizer.last_gradient_norm is None
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    wanted = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    optimizer.step()
    assert optimizer.last_gradient_norm == pytest.approx(wanted.item(), rel=1e-6)


def test_the_refresh_gap_is_read_and_set_for_every_projected_group():
    weights = [nn.Parameter(torch.zeros(6, 4)) for _ in range(3)]
    groups = [
        {"params": weights[:1], "projection_rank": 2, "refresh_gap": 7},
        {"params": weights[1:2], "projection_rank": 2, "refresh_gap": 5},
        {"params": weights[2:], "refresh_gap": 3},
    ]
    optimizer = GradNormLoRPAdamW(groups)
    assert optimizer.refresh_gap == 5
    for bad in (0, 2.5, True, "4"):
        with pytest.raises(ValueError, match="refresh_gap"):
            optimizer.set_refresh_gap(bad)
    assert optimizer.set_refresh_gap(4)
    assert [group["refresh_gap"] for group in optimizer.param_groups] == [4, 4, 3]
    refreshed = []
    for grad in stream((6, 4), 9, dtype=torch.float32):
        weights[0].grad = grad
        optimizer.step()
        refreshed.append(optimizer.last_refreshed)
    assert [step for step, yes in enumerate(refreshed) if yes] == [0, 4, 8]
    plain = GradNormLoRPAdamW(weights[2:])
    assert plain.refresh_gap is None
    assert not plain.set_refresh_gap(4)
    assert optimizer.supports_per_layer


def test_both_sides_in_bf16_keep_their_entries_and_zero_only_noise():
    zeros = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.zeros(200, 160, dtype=dtype))
        optimizer = GradNormLoRPAdamW(
            [weight], lr=0.01, projection_rank=32, side="both", refresh_gap=99, betas=(0, 0.9)
        )
        zeros[dtype] = []
        for grad in stream((200, 160), 3, dtype=torch.float32):
            # A few strong directions, as gradients have them: most entries are far under the largest one.
            weight.grad = (grad + 40 * torch.outer(grad[:, 0], grad[0])).to(dtype)
            optimizer.step()
            zeros[dtype].append(float((optimizer.state[weight]["exp_avg"] == 0).float().mean()))
    for found in zeros.values():
        assert found[0] > 0.8
        assert max(found[1:]) < 0.1
