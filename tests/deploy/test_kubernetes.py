"""The manifests agree with the project (variables, commands, ports, paths, times) and with each other."""

import asyncio
import re
import shlex
from collections import Counter
from functools import cache

import pytest
import yaml

import vision
from scripts.check_deploy import BUILT, DEPLOY, ROOT, built, check_manifest, pod_templates
from scripts.lock import read_pins
from serving.auth.tls import ServerTls
from serving.config import ServeOptions
from serving.inference.triton import QUEUE_STAGE
from serving.observability import metrics
from serving.supervisor.managed_process import KILL_MARGIN_S
from serving.supervisor.status_pages import READY_TIMEOUT_S
from serving.supervisor.supervisor import Supervisor
from serving.triton.config import TENSORRT_CACHE
from tests.support.deploy_settings import find_known_variables, parse_command_line, parse_options
from training.recipe import load_recipe
from vision.runtime.cli import EXIT_INTERRUPTED


@cache
def manifests(folder):
    return built(folder)


def find_manifest(folder, kind, name):
    [found] = [m for m in manifests(folder) if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


def find_manifests(kind, folder="overlays/gpu"):
    return [manifest for manifest in manifests(folder) if manifest["kind"] == kind]


def find_container(folder, kind, name, container):
    spec = find_manifest(folder, kind, name)["spec"]["template"]["spec"]
    [found] = [c for c in spec["containers"] + spec.get("initContainers", []) if c["name"] == container]
    return found


def read_environment(container, folder="overlays/gpu"):
    found = {}
    for source in container.get("envFrom", []):
        found |= find_manifest(folder, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {variable["name"]: variable["value"] for variable in container.get("env", [])}


HPA = "HorizontalPodAutoscaler"
GATEWAY = ("overlays/gpu", "Deployment", "listing-vision-gateway-a", "gateway")
TRITON = ("overlays/gpu", "Deployment", "listing-vision-triton-a", "triton")
TRAINING = ("jobs/training", "Job", "listing-vision-training", "training")
ALL_TEMPLATES = [
    pytest.param(folder, manifest["kind"], number, id=f"{folder}-{manifest['metadata']['name']}-{number}")
    for folder in BUILT
    for manifest in manifests(folder)
    for number, _ in enumerate(pod_templates(manifest))
]


def matches_selector(selector, template):
    labels = template["metadata"]["labels"]
    return all(labels.get(name) == value for name, value in selector.items())


@pytest.mark.parametrize("folder", BUILT)
def test_kubernetes_takes_what_kustomize_builds(folder):
    assert manifests(folder)
    for manifest in manifests(folder):
        check_manifest(manifest)


def test_a_typing_mistake_is_found():
    rayjob = find_manifest("jobs/backfill", "RayJob", "listing-vision-backfill")
    for path in (
        ["spec", "rayclusterSpec"],
        ["spec", "rayClusterSpec", "workerGroupSpec"],
        ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containrs"],
    ):
        broken = yaml.safe_load(yaml.safe_dump(rayjob))
        at = broken
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = []
        with pytest.raises(SystemExit, match=path[-1]):
            check_manifest(broken)


@pytest.mark.parametrize("folder", BUILT)
def test_every_variable_of_ours_is_read_by_some_code(folder):
    named = set(re.findall(r"LISTING_VISION_[A-Z_]+", yaml.safe_dump_all(manifests(folder))))
    assert named <= find_known_variables()


def test_the_gateway_is_started_with_options_that_it_has(monkeypatch):
    container = find_container(*GATEWAY)
    options = parse_options(container["args"], read_environment(container), monkeypatch)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(options["tls_certificate"].parent), str(options["tokens"].parent)} <= mounts
    assert str(options["bundle"].parent) in mounts
    assert options["tls_key"].name == "tls.key"  # of a Secret of the type kubernetes.io/tls
    assert options["tls_certificate"].name == "tls.crt"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": options["port"], "status": options["status_port"]}
    serve = ServeOptions(
        bundle=options["bundle"],
        host=options["host"],
        tls_certificate=options["tls_certificate"],
        tls_key=options["tls_key"],
    )
    assert isinstance(serve.tls, ServerTls)
    assert not options["insecure"]
    host, port = options["triton"].split(":")
    service = find_manifest("overlays/gpu", "Service", host)
    assert int(port) in [found["port"] for found in service["spec"]["ports"]]
    assert matches_selector(service["spec"]["selector"], find_manifest(*TRITON[:3])["spec"]["template"])


def test_the_repository_is_written_by_a_command_that_exists_where_triton_reads_it(monkeypatch):
    init = find_container("overlays/gpu", "Deployment", "listing-vision-triton-a", "repository")
    environment = read_environment(init)
    words = [re.sub(r"\$\((\w+)\)", lambda found: environment[found.group(1)], word) for word in init["args"]]
    options = parse_options(words, environment, monkeypatch)
    assert options["replace"]
    assert options["backend"] == "onnxruntime"
    assert str(options["output"]) == "/models"
    mounts = {mount["name"]: mount["mountPath"] for mount in find_container(*TRITON)["volumeMounts"]}
    assert mounts["models"] == "/models"
    assert mounts["engines"] == TENSORRT_CACHE
    # The gateways of a release decide with the bundle that its Tritons compute.
    assert (
        options["bundle"] == parse_options(["serve"], read_environment(find_container(*GATEWAY)), monkeypatch)["bundle"]
    )


def test_a_triton_that_decodes_has_pytorch_and_its_repository(monkeypatch):
    folder = "overlays/gpu-decode"
    init = find_container(folder, "Deployment", "listing-vision-triton-a", "repository")
    plain = find_container("overlays/gpu", "Deployment", "listing-vision-triton-a", "repository")
    options = parse_options(init["args"], {}, monkeypatch)
    assert options == parse_options(plain["args"], {}, monkeypatch) | {"backend": "python-gpu"}
    images = {
        container["image"].partition(":")[0]
        for deployment in find_manifests("Deployment", folder)
        for container in deployment["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"listing-vision-gateway", "listing-vision-triton-torch"}
    # The overlays differ in nothing else.
    assert {m["kind"] + m["metadata"]["name"] for m in manifests(folder)} == {
        m["kind"] + m["metadata"]["name"] for m in manifests("overlays/gpu")
    }


def test_gateways_of_an_external_triton_call_it_by_tls_and_have_none_of_their_own(monkeypatch):
    folder = "overlays/external-triton"
    container = find_container(folder, "Deployment", "listing-vision-gateway-a", "gateway")
    assert [one["metadata"]["name"] for one in find_manifests("Deployment", folder)] == ["listing-vision-gateway-a"]
    assert "listing-vision-triton" not in {one["metadata"]["name"][:21] for one in manifests(folder)}
    options = parse_options(container["args"], read_environment(container, folder), monkeypatch)
    assert options["triton"] == "triton.example:8001"
    assert options["require_patched_triton"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(options["triton_ca"].parent), str(options["triton_key_file"].parent)} <= mounts
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in find_manifests("NetworkPolicy", folder)}
    assert set(policies) == {"nothing-by-default", "gateway"}
    to_triton, to_dns = policies["gateway"]["egress"]
    assert (to_triton["to"][0]["ipBlock"]["cidr"][-3:], to_triton["ports"]) == ("/32", [{"port": 8001}])
    assert {port["port"] for port in to_dns["ports"]} == {53}


def test_probes_ask_for_paths_and_ports_that_are_answered(bundle):
    gateway, triton = find_container(*GATEWAY), find_container(*TRITON)
    supervisor = Supervisor(ServeOptions(bundle=bundle.folder))
    pages = set(supervisor.status_pages)
    asyncio.run(supervisor.stop())
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        # The native gRPC probe speaks no TLS.
        assert gateway[probe]["httpGet"]["path"] in pages
        assert gateway[probe]["httpGet"]["port"] == "status"
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert gateway["readinessProbe"]["timeoutSeconds"] > READY_TIMEOUT_S * 2
    assert triton["readinessProbe"]["grpc"]["port"] == triton["startupProbe"]["grpc"]["port"] == 8001
    assert triton["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": "http"}


def test_pods_are_given_the_time_to_end_that_they_take():
    pod = find_manifest(*GATEWAY[:3])["spec"]["template"]["spec"]
    container = find_container(*GATEWAY)
    drain_s = float(read_environment(container)["LISTING_VISION_DRAIN_S"])
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace_period_s = ServeOptions(bundle=ROOT).grace_period_s
    assert pod["terminationGracePeriodSeconds"] >= pause_s + drain_s + grace_period_s + KILL_MARGIN_S
    triton = find_manifest(*TRITON[:3])["spec"]["template"]["spec"]
    exit_s = int(re.search(r"--exit-timeout-secs=(\d+)", (DEPLOY / "triton" / "start.sh").read_text())[1])
    pause_s = find_container(*TRITON)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert triton["terminationGracePeriodSeconds"] >= pause_s + exit_s


def parse_quantity(text):
    number, unit = re.fullmatch(r"(\d+)(m|Mi|Gi|)", str(text)).groups()
    return int(number) * {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}[unit]


def find_disk_bytes(pod, container):
    """Bytes of the pod's volumes on the node's disk that a container mounts."""
    mounted = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume}
    assert all("sizeLimit" in volume for volume in volumes.values())
    on_disk = {name: volume for name, volume in volumes.items() if volume.get("medium") != "Memory"}
    return sum(parse_quantity(volume["sizeLimit"]) for name, volume in on_disk.items() if name in mounted)


def sum_resources(folder, which):
    """Yield what all pods of a folder have at their most replicas, by resource."""
    most = {m["spec"]["scaleTargetRef"]["name"]: m["spec"]["maxReplicas"] for m in find_manifests(HPA, folder)}
    for manifest in manifests(folder):
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        groups = spec.get("rayClusterSpec", {}).get("workerGroupSpecs", [])
        replicas = (
            [1] * 2 + [group["maxReplicas"] for group in groups]
            if groups
            else [most.get(name) or spec.get("parallelism")]
        )
        for number, template in zip(replicas, pod_templates(manifest), strict=False):
            surge = spec.get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 0)
            for container in template["spec"]["containers"]:
                resources = container["resources"]
                # A GPU's request is its limit.
                gpus = {name: one for name, one in resources["limits"].items() if name == "nvidia.com/gpu"}
                for resource, quantity in {**gpus, **resources[which]}.items():
                    yield resource, (number + surge) * parse_quantity(quantity)


def test_two_releases_a_training_run_and_a_backfill_fit_into_the_quota():
    hard = find_manifest("overlays/gpu", "ResourceQuota", "listing-vision")["spec"]["hard"]
    for which in ("requests", "limits"):
        needed = Counter()
        for folder, times in (("overlays/gpu", 2), ("jobs/training", 1), ("jobs/backfill", 1)):
            for resource, quantity in sum_resources(folder, which):
                needed[resource] += times * quantity
        limited = {name.partition(".")[2]: value for name, value in hard.items() if name.startswith(f"{which}.")}
        assert {"memory", "ephemeral-storage"} <= set(limited)
        for resource, value in limited.items():
            quantity = needed[resource]
            assert 0 < quantity <= parse_quantity(value) <= 1.5 * quantity, (which, resource, quantity)


def test_a_new_pod_serves_before_the_next_one_is_replaced():
    for deployment in find_manifests("Deployment"):
        assert deployment["spec"]["minReadySeconds"] >= 10


@pytest.mark.parametrize("job", ["training", "backfill"])
def test_jobs_reach_only_their_own_pods_and_dns(job):
    (policy,) = (one["spec"] for one in find_manifests("NetworkPolicy", f"jobs/{job}"))
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    to_own, to_dns = policy["egress"]
    assert to_own == {"to": [{"podSelector": policy["podSelector"]}]}
    assert {port["port"] for port in to_dns["ports"]} == {53}
    sources = [source for rule in policy["ingress"] for source in rule["from"]]
    assert all(source.get("namespaceSelector") != {} for source in sources)


@pytest.mark.parametrize(("folder", "kind", "number"), ALL_TEMPLATES)
def test_every_pod_is_locked_down(folder, kind, number):
    templates = [template for manifest in find_manifests(kind, folder) for template in pod_templates(manifest)]
    pod = templates[number]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod["volumes"]}
    used = set()
    for container in pod["containers"] + pod.get("initContainers", []):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
        assert "ephemeral-storage" in container["resources"]["requests"]
        assert find_disk_bytes(pod, container) < parse_quantity(container["resources"]["limits"]["ephemeral-storage"])
        assert container["image"].endswith(f":{vision.__version__}")
        used |= {mount["name"] for mount in container["volumeMounts"]}
    assert used == volumes


def test_kubernetes_sets_no_variable_that_would_be_taken_for_an_option():
    """A Service `listing-vision` would set LISTING_VISION_PORT=tcp://…"""
    for deployment in find_manifests("Deployment"):
        assert deployment["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_services_budgets_and_scalers_find_their_pods():
    templates = {m["metadata"]["name"]: m["spec"]["template"] for m in find_manifests("Deployment")}
    assert set(templates) == {"listing-vision-gateway-a", "listing-vision-triton-a"}
    for name in ("listing-vision", "listing-vision-pods"):
        service = find_manifest("overlays/gpu", "Service", name)["spec"]
        assert matches_selector(service["selector"], templates["listing-vision-gateway-a"])
        assert service["selector"]["app.kubernetes.io/instance"] == "a"
    for kind in ("PodDisruptionBudget", "HorizontalPodAutoscaler"):
        for found in find_manifests(kind):
            template = templates[found["metadata"]["name"]]
            if kind == "PodDisruptionBudget":
                assert matches_selector(found["spec"]["selector"]["matchLabels"], template)
                assert found["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "a"
            else:
                assert found["spec"]["scaleTargetRef"]["name"] == found["metadata"]["name"]
        assert len(find_manifests(kind)) == 2
    for template in templates.values():
        for constraint in template["spec"]["topologySpreadConstraints"]:
            assert matches_selector(constraint["labelSelector"]["matchLabels"], template)


def test_only_gateways_reach_triton_and_reach_nothing_else():
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in find_manifests("NetworkPolicy")}
    gateway, triton = (find_manifest(*which[:3])["spec"]["template"] for which in (GATEWAY, TRITON))
    closed = policies.pop("nothing-by-default")
    assert set(closed["policyTypes"]) == {"Ingress", "Egress"}
    assert closed.keys() == {"podSelector", "policyTypes"}
    for template in (gateway, triton):
        assert matches_selector(closed["podSelector"]["matchLabels"], template)
    assert set(policies) == {"gateway", "triton"}
    assert not matches_selector(policies["gateway"]["podSelector"]["matchLabels"], triton)
    to_triton, to_dns = policies["gateway"]["egress"]
    assert matches_selector(to_triton["to"][0]["podSelector"]["matchLabels"], triton)
    assert to_triton["ports"] == [{"port": 8001}]
    assert {port["port"] for port in to_dns["ports"]} == {53}
    assert "egress" not in policies["triton"]
    from_gateway, from_prometheus = policies["triton"]["ingress"]
    assert matches_selector(from_gateway["from"][0]["podSelector"]["matchLabels"], gateway)
    named = {port["name"] for which in (GATEWAY, TRITON) for port in find_container(*which)["ports"]}
    assert {rule["ports"][0]["port"] for policy in policies.values() for rule in policy["ingress"]} <= named
    assert from_gateway["ports"] == [{"port": "grpc"}]
    assert from_prometheus["ports"] == [{"port": "metrics"}]


def test_tritons_follow_metrics_that_the_adapter_makes_of_metrics_that_exist():
    rules = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())["externalRules"]
    made = {rule["name"]["as"]: rule["metricsQuery"] for rule in rules}
    scaler = find_manifest("overlays/gpu", "HorizontalPodAutoscaler", "listing-vision-triton-a")
    asked = [metric["external"]["metric"] for metric in scaler["spec"]["metrics"]]
    assert {metric["name"] for metric in asked} == set(made)
    assert all(metric["selector"] == {"matchLabels": {"release": "a"}} for metric in asked)
    stage = metrics.STAGE_SECONDS.describe()[0].name
    query = made["listing_vision_gateway_queue_seconds"]
    assert set(re.findall(r"listing_vision_\w+", query)) == {f"{stage}_sum", f"{stage}_count"}
    assert f'stage="{QUEUE_STAGE}"' in query


def test_the_training_job_is_torchrun_on_a_name_that_its_first_pod_has(monkeypatch):
    from torch.distributed.run import parse_args

    job, container = find_manifest(*TRAINING[:3])["spec"], find_container(*TRAINING)
    launcher = parse_args(container["args"])
    assert launcher.training_script == "training"
    assert launcher.module
    assert launcher.nnodes == f"1:{job['completions']}"
    assert job["parallelism"] == job["completions"]
    host, port = launcher.rdzv_endpoint.split(":")
    service = find_manifest("jobs/training", "Service", job["template"]["spec"]["subdomain"])
    assert host == f"listing-vision-training-0.{service['metadata']['name']}"
    assert port.isdigit()
    assert matches_selector(service["spec"]["selector"], job["template"])
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= launcher.shutdown_timeout + 15
    options = parse_options(["train", *launcher.training_script_args], {}, monkeypatch)
    assert load_recipe(options["recipe"])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(options["run"].parent), options["manifest"].rpartition("/")[0]} <= mounts


def test_an_interrupted_pod_does_not_use_up_the_jobs_patience():
    job = find_manifest(*TRAINING[:3])["spec"]
    rules = job["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in rules} == {"Ignore"}
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"] == {"containerName": "training", "operator": "In", "values": [EXIT_INTERRUPTED]}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # without it a failure policy is refused
    assert job["activeDeadlineSeconds"] > 0


def test_the_backfill_runs_a_command_that_exists_on_the_ray_that_is_installed(monkeypatch):
    spec = find_manifest("jobs/backfill", "RayJob", "listing-vision-backfill")["spec"]
    options = parse_command_line(spec["entrypoint"], monkeypatch)
    assert options["ray_address"] == "auto"
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert options["metrics_port"] in [port["containerPort"] for port in head["ports"]]
    mounts = {mount["mountPath"] for mount in head["volumeMounts"]}
    assert str(options["model"].parent) in mounts
    assert f"/{shlex.split(options['output'])[0].split('/')[1]}" in mounts
    pins = read_pins(ROOT / "requirements" / "backfill.txt")
    assert pins["ray"] == spec["rayClusterSpec"]["rayVersion"]
