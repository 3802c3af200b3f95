"""Fail where a deployment file is invalid for its reader: Kubernetes, KubeRay, Compose, Bake, a shell.

    python scripts/check_deploy.py

Kustomize builds the manifests as `kubectl apply -k` does. Their meaning is tested in tests/deploy/.
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
BUILT = ("overlays/gpu", "overlays/gpu-decode", "overlays/external-triton", "jobs/training", "jobs/backfill")
"""Folders of deploy/kubernetes that are applied."""
KUBERNETES_VERSIONS = ("1.33", "1.37")
"""The oldest version with all that is used (a Job's success policy), and the newest that was checked."""
RAYJOB = {"apiVersion", "kind", "metadata", "spec"}
RAYJOB_SPEC = {
    "activeDeadlineSeconds", "backoffLimit", "entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes",
    "submissionMode", "submitterPodTemplate", "ttlSecondsAfterFinished",
}  # fmt: skip
HEAD_GROUP = {"rayStartParams", "template"}
WORKER_GROUP = HEAD_GROUP | {"groupName", "maxReplicas", "minReplicas", "replicas"}
"""The fields of ray.io/v1 that are used here. No package carries its schema, so this finds spelling mistakes only."""

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """Return the path of a program that a package of this Python environment installs."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def run(*command: str) -> str:
    """Run a command and return its output. Raises SystemExit with the output of a failure."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def built(folder: str) -> list[Manifest]:
    """Return the manifests that `kubectl apply -k` would send."""
    return list(yaml.safe_load_all(run(tool("kubectl"), "kustomize", str(DEPLOY / "kubernetes" / folder))))


def pod_templates(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the pod templates of a Deployment, a Job or a RayJob."""
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
    """Raise SystemExit where Kubernetes would reject the manifest."""
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
    print(f"deploy/kubernetes: {len(manifests)} manifests are valid for Kubernetes {' and '.join(KUBERNETES_VERSIONS)}")
    for path in (COMPOSE, COMPOSE_DECODE):
        run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path))
        print(f"{path.relative_to(ROOT)}: ok")
    hcl2.loads((ROOT / "docker-bake.hcl").read_text(encoding="utf-8"))
    print("docker-bake.hcl: ok")
    run(tool("shellcheck"), *map(str, DEPLOY.rglob("*.sh")))
    print("deploy/**/*.sh: ok")


if __name__ == "__main__":
    main()
