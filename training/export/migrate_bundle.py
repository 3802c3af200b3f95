"""A finished model for another version of its taxonomy: rows of its heads carried over, merged, split or begun."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from training.data.taxonomy_changes import Migration
from training.export.export import UncalibratedBundle, build_bundle
from training.inference.forward import onnx_forward
from training.inference.network import load_bundle_model
from vision.bundle import ONNX_ON_CPU, UNKNOWN_BACKEND, Bundle, certificate_binding, require_new_folder
from vision.calibration import BRAND_FIELD, Calibration
from vision.errors import BundleError
from vision.model import CosineHead, ListingClassifier

__all__ = [
    "LabelSources",
    "MigratedBundle",
    "find_brand_sources",
    "find_leaf_sources",
    "migrate_bundle",
    "migrate_heads",
]

_NUM_NAMED = 5
"""Changes that the reason of a void guarantee names."""


@dataclass(frozen=True)
class LabelSources:
    """What a label of the new taxonomy is made of: K labels of the old one, none if it was added."""

    labels: tuple[int, ...]
    """Indices of old logits."""
    num_shares: tuple[int, ...]
    """How many new labels each of them is shared by: more than 1 where it was split."""


@dataclass(frozen=True, kw_only=True)
class MigratedBundle:
    bundle: Bundle
    categories_carried: bool
    """Whether the guarantees for categories hold as before, because only names changed."""
    brand_carried: bool
    added: tuple[str, ...]
    """Leaves and brands that the model has never seen, by id: their rows are the mean of all others."""


def migrate_bundle(source: Bundle, migration: Migration, output: Path) -> MigratedBundle:
    """Write a new bundle for the new taxonomy, without training.

    A row of a head stays bit for bit where its class survives. A class that was split shares its probability equally
    among its parts; merged ones add theirs up, as far as a linear head can. Guarantees of a field stay where none of
    its classes changed but in name or order, verified on the golden photos, and are void elsewhere.

    Args:
        source: in fp32.
        migration: from the bundle's taxonomy.
        output: folder of the new bundle.

    Raises:
        BundleError: `output` exists, or the bundle has another taxonomy or precision.
        ExportMismatch: an export predicts differently from the model.
    """
    require_new_folder(output)
    if source.info.precision != "fp32":
        raise BundleError(
            f"bundle {source.folder} has the precision {source.info.precision}; migrate the fp32 bundle that it was "
            "made from, and convert again"
        )
    if source.taxonomy != migration.old:
        raise BundleError(
            f"bundle {source.folder} has the taxonomy {source.taxonomy.version!r}, not the {migration.old.version!r} "
            "of the migration"
        )
    leaves, brands = find_leaf_sources(migration), find_brand_sources(migration)
    never_trained = _find_never_trained(source, migration, leaves, brands)
    after = migrate_heads(load_bundle_model(source), leaves, brands)
    # Equality is verified with ONNX Runtime on the CPU; another backend may compute the other graph differently.
    verifiable = source.calibration.certifies.get("backend") == ONNX_ON_CPU
    carried = {
        "category": verifiable and _keeps_categories(migration),
        "brand": verifiable and _keeps_brands(migration),
    }

    def calibrate_export(exported: UncalibratedBundle) -> Calibration:
        photos = source.golden.photos_nhwc
        before, now = onnx_forward(source.onnx_path)(photos), exported.infer(photos)
        for kind, sources, old, new in (
            ("category", leaves, before.category, now.category),
            ("brand", brands, before.brand, now.brand),
        ):
            if carried[kind]:
                carried[kind] = bool((new == old[:, [one.labels[0] for one in sources]]).all())
        return _migrate_calibration(source, exported, migration, carried=carried, leaves=leaves, brands=brands)

    bundle = build_bundle(
        after,
        output,
        model_name=source.info.model_name,
        taxonomy=migration.new,
        preprocessing=source.info.preprocessing,
        photos_nhwc=source.golden.photos_nhwc,
        photos_from="the source bundle's golden ones",
        training={**_extend_training_record(source, migration), "never_trained": never_trained},
        calibrate_export=calibrate_export,
        pt2="model.pt2" in source.files,
    )
    return MigratedBundle(
        bundle=bundle,
        categories_carried=carried["category"],
        brand_carried=carried["brand"],
        added=(*never_trained["category"], *never_trained["brand"]),
    )


def find_leaf_sources(migration: Migration) -> list[LabelSources]:
    """Find what each new leaf, in the order of the logits, is made of.

    A leaf that became an inner node is shared by the leaves below it. A leaf that was an inner node is made of the old
    leaves below it that have no place of their own.
    """
    old, new = migration.old, migration.new
    targets = {
        change.old_id: change.parts or ((change.new_id,) if change.new_id else ())
        for change in migration.changes
        if change.kind == "category" and change.old_id
    }
    found: list[list[tuple[int, int]]] = [[] for _ in new.leaf_ids]
    for label, old_id in enumerate(old.leaf_ids):
        rows = [new.node_index[id_] for id_ in targets[old_id]]
        taking = np.flatnonzero(new.leaves_below[rows].any(axis=0))
        for leaf in taking.tolist():
            found[leaf].append((label, len(taking)))
    for leaf, new_id in enumerate(new.leaf_ids):
        if not found[leaf]:
            nodes = [old.node_index[old_id] for old_id, ids in targets.items() if ids == (new_id,)]
            below = np.flatnonzero(old.leaves_below[nodes].any(axis=0)).tolist()
            found[leaf] = [(label, 1) for label in below if not targets[old.leaf_ids[label]]]
    return [LabelSources(tuple(label for label, _ in one), tuple(shares for _, shares in one)) for one in found]


def find_brand_sources(migration: Migration) -> list[LabelSources]:
    """Find what each new brand label, 'no brand' first, is made of."""
    label_of = {brand.id: label for label, brand in enumerate(migration.old.brands, start=1)}
    found: dict[str, list[int]] = {brand.id: [] for brand in migration.new.brands}
    for change in migration.changes:
        if change.kind == "brand" and change.old_id and change.new_id:
            found[change.new_id].append(label_of[change.old_id])
    return [LabelSources(tuple(labels), (1,) * len(labels)) for labels in ([0], *found.values())]


@torch.inference_mode()
def migrate_heads(
    model: ListingClassifier, leaves: Sequence[LabelSources], brands: Sequence[LabelSources]
) -> ListingClassifier:
    """The network with heads for the new labels; all else bit-equal.

    A linear head cannot give log(exp(a) + exp(b)) of merged logits; mean + log 2 is its tangent where they are equal,
    and below it elsewhere. An added label gets the mean of all rows, so that its logit is their mean and never the
    largest; in a cosine head its bias lies below all that the scale allows.
    """
    state = dict(model.state_dict())
    state["category_head.weight"], state["category_head.bias"] = _combine(
        model.category_head.weight, model.category_head.bias, leaves
    )
    head = model.brand_head
    if isinstance(head, CosineHead):
        directions = functional.normalize(head.weight, dim=1)
        weight, bias = _combine(directions, head.bias, brands)
        for row, one in enumerate(brands):
            if len(one.labels) == 1:
                weight[row] = head.weight[one.labels[0]]  # bit for bit
            elif not one.labels:
                bias[row] = head.bias.min() - 2 * head.log_scale.exp()
    else:
        weight, bias = _combine(head.weight, head.bias, brands)
    state["brand_head.weight"], state["brand_head.bias"] = weight, bias
    migrated = ListingClassifier(replace(model.spec, num_categories=len(leaves), num_brands=len(brands)))
    migrated.load_weights(state)
    return migrated.eval()


def _combine(
    weight: torch.Tensor, bias: torch.Tensor, sources: Sequence[LabelSources]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (L', D) and biases (L',) of the new labels from those (L, D) and (L,) of the old ones."""
    rows, biases = [], []
    for one in sources:
        if not one.labels:
            rows.append(weight.mean(dim=0))
            biases.append(bias.mean())
            continue
        labels = list(one.labels)
        rows.append(weight[labels].mean(dim=0))
        biases.append((bias[labels] - torch.tensor(one.num_shares).log()).mean() + math.log(len(labels)))
    return torch.stack(rows), torch.stack(biases)


def _keeps_categories(migration: Migration) -> bool:
    """Whether the new tree is the old one under other names, or in another order."""
    old, new = migration.old, migration.new
    targets = {c.old_id: c.new_id for c in migration.changes if c.kind == "category" and c.old_id}
    if len(targets) != len(new.categories) or set(targets.values()) != set(new.by_id):
        return False
    return all(
        [targets[c.id] for c in old.get_lineage(old_id)] == [c.id for c in new.get_lineage(new_id)]
        and old.fillable[old.node_index[old_id]] == new.fillable[new.node_index[new_id]]
        for old_id, new_id in targets.items()
    )


def _keeps_brands(migration: Migration) -> bool:
    return {c.what for c in migration.changes if c.kind == "brand"} <= {"kept", "renamed"}


def _migrate_calibration(
    source: Bundle,
    exported: UncalibratedBundle,
    migration: Migration,
    *,
    carried: Mapping[str, bool],
    leaves: Sequence[LabelSources],
    brands: Sequence[LabelSources],
) -> Calibration:
    """The source's calibration for the new files, with the guarantees of a field void whose classes changed."""
    calibration = source.calibration
    backend = calibration.certifies.get("backend", UNKNOWN_BACKEND)
    fields = []
    for field in calibration.fields:
        kind = "brand" if field.name == BRAND_FIELD else "category"
        if not carried[kind]:
            reason = f"{_name_changes(migration, kind)} since calibration; run `listing-vision calibrate`"
            (field,) = replace(calibration, fields=(field,)).void(reason).fields
        fields.append(field)
    same_depth = migration.old.max_depth == migration.new.max_depth
    return replace(
        calibration,
        fields=tuple(fields),
        category_depth_temperatures=calibration.category_depth_temperatures if same_depth else (),
        category_log_prior=_migrate_log_prior(calibration.category_log_prior, leaves),
        brand_log_prior=_migrate_log_prior(calibration.brand_log_prior, brands),
        certifies={
            **calibration.certifies,
            **certificate_binding(exported.info, exported.sha256, backend=backend),
        },
    )


def _extend_training_record(source: Bundle, migration: Migration) -> dict[str, Any]:
    record = {"from": migration.old.version, "to": migration.new.version, "to_version": source.info.model_version}
    return {
        **source.info.training,
        "taxonomies_migrated": [*source.info.training.get("taxonomies_migrated", ()), record],
    }


def _find_never_trained(
    source: Bundle, migration: Migration, leaves: Sequence[LabelSources], brands: Sequence[LabelSources]
) -> dict[str, list[str]]:
    """Ids of new leaves and brands that are made of nothing, or of what earlier migrations added."""
    before = source.info.training.get("never_trained", {})

    def find(kind: str, old_ids: Sequence[str], new_ids: Sequence[str], sources: Sequence[LabelSources]) -> list[str]:
        untrained = {label for label, id_ in enumerate(old_ids) if id_ in before.get(kind, ())}
        return [id_ for id_, one in zip(new_ids, sources, strict=True) if untrained.issuperset(one.labels)]

    old_brands, new_brands = (["", *(brand.id for brand in tree.brands)] for tree in (migration.old, migration.new))
    return {
        "category": find("category", migration.old.leaf_ids, migration.new.leaf_ids, leaves),
        "brand": find("brand", old_brands, new_brands, brands),
    }


def _migrate_log_prior(log_prior: Sequence[float], sources: Sequence[LabelSources]) -> tuple[float, ...]:
    """The prior of merged labels together, less their number, which their bias has; the least for an added label."""
    if not log_prior:
        return ()
    return tuple(
        float(np.logaddexp.reduce([log_prior[label] for label in one.labels])) - math.log(len(one.labels))
        if one.labels
        else min(log_prior)
        for one in sources
    )


def _name_changes(migration: Migration, kind: str) -> str:
    """`category merged: gala, fuji; split: lemon`, or the versions where nothing but names changed."""
    named = [c for c in migration.changes if c.kind == kind and c.what not in ("kept", "renamed")]
    by_what: dict[str, list[str]] = {}
    for change in named[:_NUM_NAMED]:
        by_what.setdefault(change.what, []).append(change.old_id or change.new_id)
    if not by_what:
        return f"the taxonomy went from {migration.old.version} to {migration.new.version}"
    more = f" and {len(named) - _NUM_NAMED} more" if len(named) > _NUM_NAMED else ""
    texts = [f"{what}: {', '.join(ids)}" for what, ids in by_what.items()]
    return f"{kind} {'; '.join(texts)}{more}"
