import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.support.helpers import create_small_taxonomy
from training.trainer.losses import (
    ListingLoss,
    NumLabelled,
    compute_log_class_shares,
    compute_node_losses,
    compute_outlier_losses,
    find_ancestors,
)
from training.trainer.mixup import Mix
from vision.manifest import OUT_OF_SCOPE, Labels
from vision.model import Outputs

TAXONOMY = create_small_taxonomy()
BELOW = torch.from_numpy(TAXONOMY.leaves_below)
LEAF_NODES = [TAXONOMY.node_index[leaf] for leaf in TAXONOMY.leaf_ids]


def loss(logits, nodes, smoothing=0.0):
    nodes = torch.tensor(nodes)
    losses = compute_node_losses(logits, nodes, BELOW, label_smoothing=smoothing)
    return losses.sum() / (nodes >= 0).sum().clamp(min=1)


def test_leaves_give_ordinary_cross_entropy():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    for smoothing in (0.0, 0.1):
        wanted = cross_entropy(logits, torch.arange(4), label_smoothing=smoothing)
        torch.testing.assert_close(loss(logits, LEAF_NODES, smoothing), wanted)


def test_an_inner_node_is_the_sum_of_its_leaves():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    p = np.exp(logits[0].numpy()) / np.exp(logits[0].numpy()).sum()
    got = loss(logits, [TAXONOMY.node_index["apple"]])
    np.testing.assert_allclose(got, -np.log(p[0] + p[1]), rtol=1e-5)


def test_missing_labels_change_neither_loss_nor_gradient():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with_missing = loss(logits, [LEAF_NODES[0], -1, LEAF_NODES[2]], 0.1)
    torch.testing.assert_close(with_missing, loss(logits[[0, 2]], [LEAF_NODES[0], LEAF_NODES[2]], 0.1))
    with_missing.backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).any()


def test_no_label_at_all_is_a_loss_of_zero_with_finite_gradients():
    logits = torch.randn(2, 4, requires_grad=True)
    nothing = loss(logits, [-1, -1], 0.1)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad == 0).all()


LOSS = ListingLoss(
    leaves_below=BELOW, ancestors=torch.from_numpy(find_ancestors(TAXONOMY)), brand_weight=0.5, label_smoothing=0.0
)


def outputs(num_photos, seed=0):
    random = torch.Generator().manual_seed(seed)
    category, brand = torch.randn(num_photos, 4, generator=random), torch.randn(num_photos, 3, generator=random)
    return Outputs(category, brand, torch.zeros(num_photos, 1), torch.zeros(num_photos))


def test_heads_are_masked_separately():
    given = outputs(2)
    got = LOSS(given, torch.tensor([LEAF_NODES[1], -1]), torch.tensor([-1, 2]))
    wanted = cross_entropy(given.category_logits[:1], torch.tensor([1])) + 0.5 * cross_entropy(
        given.brand_logits[1:], torch.tensor([2])
    )
    torch.testing.assert_close(got, wanted)


def test_the_parts_of_a_step_add_up_to_it():
    given = outputs(6)
    nodes = torch.tensor([LEAF_NODES[0], -1, LEAF_NODES[2], LEAF_NODES[3], -1, -1])
    brands = torch.tensor([-1, 2, 1, -1, 0, 0])
    whole = LOSS(given, nodes, brands)
    counted = NumLabelled(3, 4, 5)
    parts = [
        LOSS(Outputs(*(t[part] for t in given)), nodes[part], brands[part], num_labelled=counted)
        for part in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_mixed_photos_answer_for_both_by_their_shares_and_only_where_there_is_a_label():
    given = outputs(3)
    nodes, brands = torch.tensor([LEAF_NODES[0], -1, LEAF_NODES[2]]), torch.tensor([1, -1, -1])
    partners, share = torch.tensor([1, 2, 0]), 0.7
    category = -given.category_logits.log_softmax(1)
    brand = -given.brand_logits.log_softmax(1)
    wanted_category = (0.7 * (category[0, 0] + category[2, 2]) + 0.3 * (category[1, 2] + category[2, 0])) / 2
    wanted_brand = 0.7 * brand[0, 1] + 0.3 * brand[2, 1]
    got = LOSS(given, nodes, brands, mix=Mix(partners, share))
    torch.testing.assert_close(got, wanted_category + 0.5 * wanted_brand)


def test_ancestors_are_listed_from_the_root_down():
    ancestors = dict(zip(TAXONOMY.node_index, find_ancestors(TAXONOMY).tolist(), strict=True))
    fruit, apple = TAXONOMY.node_index["fruit"], TAXONOMY.node_index["apple"]
    assert ancestors == {
        "fruit": [-1, -1],
        "apple": [fruit, -1],
        "gala": [fruit, apple],
        "fuji": [fruit, apple],
        "lemon": [fruit, -1],
        "tools": [-1, -1],
    }


def test_inner_nodes_add_the_mean_loss_of_the_categories_above():
    given = outputs(5)
    gala, apple, lemon, tools = (TAXONOMY.node_index[name] for name in ("gala", "apple", "lemon", "tools"))
    nodes, brands = torch.tensor([gala, apple, lemon, tools, -1]), torch.full((5,), -1)
    p = given.category_logits.double().softmax(dim=1)
    fruit = -p[:, :3].sum(dim=1).log()
    above = (fruit[0] - p[0, :2].sum().log()) / 2 + fruit[1] + fruit[2]
    got = dataclasses.replace(LOSS, inner_node_weight=0.5)(given, nodes, brands)
    torch.testing.assert_close(got, LOSS(given, nodes, brands) + 0.5 * above.float() / 4)


def test_inner_nodes_of_mixed_photos_count_by_their_shares():
    given = outputs(2)
    nodes, brands = torch.tensor([LEAF_NODES[0], LEAF_NODES[3]]), torch.tensor([-1, -1])
    inner = dataclasses.replace(LOSS, inner_node_weight=1.0)
    mixed = inner(given, nodes, brands, mix=Mix(torch.tensor([1, 0]), 0.7))
    torch.testing.assert_close(mixed, 0.7 * inner(given, nodes, brands) + 0.3 * inner(given, nodes.flip(0), brands))


def test_a_photo_out_of_scope_is_to_have_all_leaves_alike():
    logits = torch.tensor([[3.0, 0, 0, 0], [1.0, 1, 1, 1], [3.0, 0, 0, 0]], requires_grad=True)
    losses = compute_outlier_losses(logits, torch.tensor([OUT_OF_SCOPE, OUT_OF_SCOPE, -1]))
    expected = -torch.log_softmax(logits.detach(), dim=1).mean(dim=1)
    torch.testing.assert_close(losses.detach(), expected * torch.tensor([1.0, 1, 0]))
    losses.sum().backward()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]
    torch.testing.assert_close(logits.grad[1:], torch.zeros(2, 4))


def test_photos_out_of_scope_add_to_the_loss_and_do_not_count_as_labelled():
    labels = Labels(category_nodes=np.array([1, OUT_OF_SCOPE]), brands=np.full(2, -1))
    settings = {"adjust_logits": False, "brand_weight": 0.5, "label_smoothing": 0.0}
    found = outputs(2)
    nodes, brands = torch.from_numpy(labels.category_nodes), torch.from_numpy(labels.brands)
    without, with_them = (
        ListingLoss.build(TAXONOMY, labels, torch.device("cpu"), outlier_weight=weight, **settings)(
            found, nodes, brands, num_labelled=NumLabelled.from_labels(labels.category_nodes, labels.brands)
        )
        for weight in (0.0, 0.5)
    )
    alone = compute_outlier_losses(found.category_logits, nodes).sum()
    torch.testing.assert_close(with_them, without + 0.5 * alone)


def test_class_shares_spread_an_inner_label_over_its_leaves():
    apple, lemon = TAXONOMY.node_index["apple"], TAXONOMY.node_index["lemon"]
    shares = np.exp(compute_log_class_shares(np.array([apple, apple, lemon, -1]), TAXONOMY.leaves_below))
    by_leaf = dict(zip(TAXONOMY.leaf_ids, shares, strict=True))
    assert by_leaf["gala"] == pytest.approx(2 / 7)
    assert by_leaf["lemon"] == pytest.approx(2 / 7)
    assert by_leaf["tools"] == pytest.approx(1 / 7)


def test_class_shares_count_what_is_drawn():
    nodes = np.array([LEAF_NODES[0]] * 98 + [LEAF_NODES[1]] * 2)
    weights = np.where(nodes == LEAF_NODES[0], 0.5 / 98, 0.5 / 2)
    shares = np.exp(compute_log_class_shares(nodes, TAXONOMY.leaves_below, weights))
    assert shares == pytest.approx([51 / 104, 51 / 104, 1 / 104, 1 / 104])


def test_adjusted_logits_learn_the_balanced_answer():
    """A photo that tells nothing, of a class nine times as frequent as the others: plain cross-entropy learns the
    frequency, the adjusted one to be undecided (Menon et al. 2021, section 4)."""
    nodes = torch.tensor([LEAF_NODES[0]] * 27 + [LEAF_NODES[i] for i in (1, 2, 3) for _ in range(3)])
    shares = torch.log(torch.tensor([27, 3, 3, 3]) / 36)

    def learnt(log_shares):
        bias = torch.zeros(4, requires_grad=True)
        optimizer = torch.optim.LBFGS([bias], max_iter=100)

        def closure():
            optimizer.zero_grad()
            loss = compute_node_losses(
                bias.expand(36, 4), nodes, BELOW, label_smoothing=0.0, log_shares=log_shares
            ).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return bias.detach().softmax(0)

    torch.testing.assert_close(learnt(None), shares.exp(), atol=1e-3, rtol=0)
    torch.testing.assert_close(learnt(shares), torch.full((4,), 0.25), atol=1e-3, rtol=0)
