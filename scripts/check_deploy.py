"""Fails where a file for deployment is not what its reader understands: Kubernetes, KubeRay, Compose, Bake, a shell.

    python scripts/check_deploy.py

Manifests are built by Kustomize as `kubectl apply -k` builds them. What they mean is tested in tests/deploy/.
"""

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.gpu.yaml"
COMPOSE_DECODE = DEPLOY / "compose.gpu-decode.yaml"
BUILT = ("overlays/gpu", "overlays/gpu-decode", "jobs/training", "jobs/backfill")
"""Folders of deploy/kubernetes that are applied."""
KUBERNETES_VERSIONS = ("1.33", "1.37")
"""The oldest that knows all that is used (a Job's success policy), and the newest that was looked at."""
RAYJOB = {"apiVersion", "kind", "metadata", "spec"}
RAYJOB_SPEC = {
    "activeDeadlineSeconds", "backoffLimit", "entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes",
    "submissionMode", "submitterPodTemplate", "ttlSecondsAfterFinished",
}  # fmt: skip
HEAD_GROUP = {"rayStartParams", "template"}
WORKER_GROUP = HEAD_GROUP | {"groupName", "maxReplicas", "minReplicas", "replicas"}
"""Fields of ray.io/v1 that are used here: no package carries its schema, so a typing mistake is what this finds."""

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """A program that came with a package of this Python environment."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def run(*command: str) -> str:
    """What the command prints. Raises SystemExit with what it complains of."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def built(folder: str) -> list[Manifest]:
    """The manifests that `kubectl apply -k` would send."""
    return list(yaml.safe_load_all(run(tool("kubectl"), "kustomize", str(DEPLOY / "kubernetes" / folder))))


def pod_templates(manifest: Manifest) -> Iterator[Manifest]:
    """Of a Deployment, a Job or a RayJob."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        yield spec["submitterPodTemplate"]
        yield cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield group["template"]
    elif "template" in spec:
        yield spec["template"]


def check_manifest(manifest: Manifest) -> None:
    """Raise SystemExit where Kubernetes would refuse it."""
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    checked = [manifest]
    if manifest["kind"] == "RayJob":
        _check_rayjob(manifest, name)
        checked = [_as_pod(template, name) for template in pod_templates(manifest)]
    for version in KUBERNETES_VERSIONS:
        for one in checked:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise SystemExit(f"{name}, Kubernetes {version}: {error.message} at {list(error.path)}") from error


def _as_pod(template: Manifest, name: str) -> Manifest:
    metadata = {**template.get("metadata", {}), "name": name.split()[-1]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _check_rayjob(manifest: Manifest, name: str) -> None:
    spec, cluster = manifest["spec"], manifest["spec"]["rayClusterSpec"]
    _check_fields(name, manifest, RAYJOB)
    _check_fields(f"{name}: spec", spec, RAYJOB_SPEC)
    _check_fields(f"{name}: rayClusterSpec", cluster, {"headGroupSpec", "rayVersion", "workerGroupSpecs"})
    _check_fields(f"{name}: headGroupSpec", cluster["headGroupSpec"], HEAD_GROUP)
    for group in cluster["workerGroupSpecs"]:
        _check_fields(f"{name}: workerGroupSpecs", group, WORKER_GROUP)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        if not all(isinstance(value, str) for value in group["rayStartParams"].values()):
            raise SystemExit(f"{name}: rayStartParams are strings")


def _check_fields(where: str, found: Manifest, known: set[str]) -> None:
    if unknown := set(found) - known:
        raise SystemExit(f"{where}: unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")


def main() -> None:
    manifests = [manifest for folder in BUILT for manifest in built(folder)]
    for manifest in manifests:
        check_manifest(manifest)
    print(f"deploy/kubernetes: {len(manifests)} manifests are what Kubernetes {' and '.join(KUBERNETES_VERSIONS)} take")
    for path in (COMPOSE, COMPOSE_DECODE):
        run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path))
        print(f"{path.relative_to(ROOT)}: ok")
    hcl2.loads((ROOT / "docker-bake.hcl").read_text(encoding="utf-8"))
    print("docker-bake.hcl: ok")
    run(tool("shellcheck"), *map(str, DEPLOY.rglob("*.sh")))
    print("deploy/**/*.sh: ok")


if __name__ == "__main__":
    main()
