import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tests.helpers import small_taxonomy
from training.losses import listing_loss, node_cross_entropy

TAXONOMY = small_taxonomy()
BELOW = torch.from_numpy(TAXONOMY.leaves_below)
LEAF_NODES = [TAXONOMY.node_index[leaf] for leaf in TAXONOMY.leaf_ids]


def loss(logits, nodes, smoothing=0.0):
    return node_cross_entropy(logits, torch.tensor(nodes), BELOW, label_smoothing=smoothing)


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


def test_heads_are_masked_separately():
    category_logits, brand_logits = torch.randn(2, 4), torch.randn(2, 3)
    got = listing_loss(
        category_logits,
        brand_logits,
        category_nodes=torch.tensor([LEAF_NODES[1], -1]),
        brands=torch.tensor([-1, 2]),
        leaves_below=BELOW,
        brand_weight=0.5,
        label_smoothing=0.0,
    )
    wanted = cross_entropy(category_logits[:1], torch.tensor([1])) + 0.5 * cross_entropy(
        brand_logits[1:], torch.tensor([2])
    )
    torch.testing.assert_close(got, wanted)
