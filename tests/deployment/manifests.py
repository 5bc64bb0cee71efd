"""Validates docker-compose.yml and the Kubernetes overlays. Called by `manifests`, which brings the validators."""

import copy
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import compose_spec
import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
# The oldest that is promised, and the newest whose schema the validator has.
VERSIONS = ["1.31", "1.37"]
CUSTOM = {"ScaledObject": ScaledObject, "PrometheusRule": PrometheusRule, "ServiceMonitor": ServiceMonitor}
# BRIDGE_SHUTDOWN_GRACE of the manifests.
GRACE_SECONDS = 60
problems = []


def problem(text):
    problems.append(text)


def load(path):
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def merge(target, patch):
    """A strategic merge, as far as the overlays use it: lists of named things by their names, null deletes."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value)
        elif isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
            there = {one["name"]: one for one in target.setdefault(key, [])}
            for one in value:
                if one["name"] in there:
                    merge(there[one["name"]], one)
                else:
                    target[key].append(copy.deepcopy(one))
        else:
            target[key] = copy.deepcopy(value)


def render(folder):
    """What `kustomize build` makes of a folder, for the few fields that are used here; others are refused."""
    [kustomization] = load(folder / "kustomization.yaml")
    known = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"}
    if unknown := kustomization.keys() - known:
        problem(f"{folder}: fields that are not checked here: {unknown}")
    found = []
    for name in kustomization.get("resources", []) + kustomization.get("components", []):
        path = (folder / name).resolve()
        found += render(path) if path.is_dir() else load(path)
    listed = {name for name in kustomization.get("resources", []) + [one["path"] for one in kustomization.get("patches", [])]}
    for file in folder.glob("*.yaml"):
        if file.name != "kustomization.yaml" and file.name not in listed:
            problem(f"{file} is not in the kustomization")
    for patch in kustomization.get("patches", []):
        for change in load(folder / patch["path"]):
            fits = [one for one in found if one["kind"] == change["kind"] and one["metadata"]["name"] == change["metadata"]["name"]]
            if len(fits) != 1:
                problem(f"{folder}/{patch['path']} fits {len(fits)} resources")
            for one in fits:
                merge(one, change)
    for one in found:
        if "namespace" in kustomization and one["kind"] != "Namespace":
            one["metadata"]["namespace"] = kustomization["namespace"]
        for container in pod(one).get("containers", []):
            for image in kustomization.get("images", []):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return found


def pod(resource):
    return resource.get("spec", {}).get("template", {}).get("spec", {}) if resource["kind"] == "Deployment" else {}


def labels_fit(selector, labels):
    return selector.items() <= labels.items()


def check_custom(name, resource):
    """A model takes what it does not know; what it gives back shows what it did not take."""
    model = CUSTOM[resource["kind"]].model_validate(resource)
    back = model.model_dump(mode="json", by_alias=True, exclude_none=True)

    def lost(given, kept, path):
        if isinstance(given, dict) and isinstance(kept, dict):
            for key in given:
                if key not in kept:
                    problem(f"{name}: {path}.{key} is unknown")
                else:
                    lost(given[key], kept[key], f"{path}.{key}")
        elif isinstance(given, list) and isinstance(kept, list):
            for index, (one, other) in enumerate(zip(given, kept)):
                lost(one, other, f"{path}[{index}]")

    lost(resource["spec"], back["spec"], "spec")


def check_overlay(folder):
    resources = render(folder)
    names = [(one["kind"], one["metadata"]["name"]) for one in resources]
    if len(set(names)) != len(names):
        problem(f"{folder}: the same resource twice in {names}")
    configs = {one["metadata"]["name"]: one["data"] for one in resources if one["kind"] == "ConfigMap"}
    deployments = [one for one in resources if one["kind"] == "Deployment"]
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in deployments]
    for resource in resources:
        kind, name = resource["kind"], f"{folder.name}: {resource['kind']} {resource['metadata']['name']}"
        if kind in CUSTOM:
            check_custom(name, resource)
        elif kind == "RabbitmqCluster":
            known = {"replicas", "image", "persistence", "resources", "terminationGracePeriodSeconds", "rabbitmq", "affinity"}
            if resource["apiVersion"] != "rabbitmq.com/v1beta1" or resource["spec"].keys() - known:
                problem(f"{name}: unknown fields")
            if resource["spec"]["replicas"] % 2 == 0:
                problem(f"{name}: an even number of nodes")
        else:
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(resource, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    problem(f"{name}: {version}: {error.message}")
        spec = resource.get("spec", {})
        if kind in ("Service", "PodDisruptionBudget"):
            selector = spec["selector"] if kind == "Service" else spec["selector"]["matchLabels"]
            if not any(labels_fit(selector, labels) for labels in pods):
                problem(f"{name} selects no pod")
        if kind == "ServiceMonitor" and "rabbitmq" not in name:
            services = [one for one in resources if one["kind"] == "Service"]
            if not any(labels_fit(spec["selector"]["matchLabels"], one["metadata"]["labels"]) for one in services):
                problem(f"{name} selects no service")
        if kind == "ScaledObject" and ("Deployment", spec["scaleTargetRef"]["name"]) not in names:
            problem(f"{name} scales nothing")
        if kind == "Deployment":
            check_deployment(name, resource, configs)
    return resources


def check_deployment(name, resource, configs):
    spec = pod(resource)
    [container] = spec["containers"]
    security, rights = spec["securityContext"], container["securityContext"]
    # Pod Security Standards, level restricted, as far as a manifest shows it, and a root that cannot be written to.
    restricted = (
        security["runAsNonRoot"] and security["runAsUser"] != 0 and security["seccompProfile"]["type"] == "RuntimeDefault"
        and rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}
        and rights["readOnlyRootFilesystem"] and spec["automountServiceAccountToken"] is False
    )
    if not restricted:
        problem(f"{name} is not restricted")
    settings = {}
    for source in container["envFrom"]:
        settings |= configs[source["configMapRef"]["name"]]
    settings |= {one["name"]: one["value"] for one in container["env"]}
    grace = settings["BRIDGE_SHUTDOWN_GRACE"]
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if grace != f"{GRACE_SECONDS}s" or spec["terminationGracePeriodSeconds"] <= GRACE_SECONDS + pause:
        problem(f"{name}: its termination grace period is not above the bridge's own")
    # Secrets come as files that are mounted.
    mounted = {item["path"] for volume in spec["volumes"] for item in volume["secret"]["items"]}
    for setting, value in settings.items():
        if setting.endswith("_FILE") and value.removeprefix("/secrets/") not in mounted:
            problem(f"{name}: {setting} names {value}, which is not mounted")
        if re.search("SECRET|TOKEN|PASSWORD", setting) and not setting.endswith("_FILE"):
            problem(f"{name}: {setting} is a secret in clear")
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if container[probe]["httpGet"]["port"] not in ports:
            problem(f"{name}: {probe} asks a port that is not there")
    if container["image"].endswith(":latest") or ":" not in container["image"]:
        problem(f"{name}: its image is not pinned")


def check_rules(write):
    """The PrometheusRule holds what deploy/prometheus has."""
    groups = [group for name in ("recording", "alerts") for group in load(ROOT / f"deploy/prometheus/{name}.yaml")[0]["groups"]]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "defender-bridge", "labels": {"app.kubernetes.io/name": "defender-bridge"}},
        "spec": {"groups": groups},
    }
    path = KUBERNETES / "monitoring/rules.yaml"
    if write:
        head = "# Made from deploy/prometheus by `tests/deployment/manifests --write`.\n"
        path.write_text(head + yaml.safe_dump(rule, sort_keys=False, width=120))
    elif load(path) != [rule]:
        problem(f"{path} is not what deploy/prometheus has: tests/deployment/manifests --write")


def check_compose():
    path = ROOT / "docker-compose.yml"
    # Its merges and defaults are resolved by one implementation, and the result is read by another.
    with tempfile.TemporaryDirectory() as folder:
        podman = pathlib.Path(folder) / "podman"
        podman.write_text("#!/bin/sh\necho podman version 5.0.0\n")
        podman.chmod(0o755)
        profiles = [word for profile in ("production", "demo", "operator") for word in ("--profile", profile)]
        command = ["podman-compose", "-f", str(path), *profiles, "config"]
        path_variable = f"{folder}:{os.environ['PATH']}"
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path_variable})
    if done.returncode != 0:
        problem(f"{path}: {done.stderr}")
        return 0
    resolved = yaml.safe_load(done.stdout)
    compose = compose_spec.PyCompose.from_yaml(done.stdout)
    compose.validate()
    services = resolved["services"]
    for name, service in services.items():
        image = service["image"]
        if ":" not in image or image.endswith(":latest"):
            problem(f"{path}: {name}: the image {image} is not pinned")
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                problem(f"{path}: {name} waits for the health of {other}, which has no check")
        for secret in service.get("secrets", []):
            if secret not in resolved["secrets"]:
                problem(f"{path}: {name}: no secret {secret}")
        if "build" in service and not (service["read_only"] and service["cap_drop"] == ["ALL"]):
            problem(f"{path}: {name} is not confined")
        for setting, value in service.get("environment", {}).items():
            if str(value).startswith("/run/secrets/") and value.removeprefix("/run/secrets/") not in service["secrets"]:
                problem(f"{path}: {name}: {setting} names a secret that the service does not get")
        for volume in service.get("volumes", []):
            source = str(volume).split(":")[0]
            if source.startswith(("./", "/")) and not (ROOT / source).exists():
                problem(f"{path}: {name}: {source} is not there")
    return len(services)


def check_collector():
    """The collector's own checker is in no package: every part of a pipeline must at least be defined, and be used."""
    path = ROOT / "deploy/otel-collector.yaml"
    [settings] = load(path)
    service = settings.pop("service")
    used = {"extensions": set(service["extensions"])}
    for pipeline in service["pipelines"].values():
        for kind, names in pipeline.items():
            used.setdefault(kind, set()).update(names)
    for kind in used.keys() | settings.keys():
        if set(settings.get(kind, {})) != used.get(kind, set()):
            problem(f"{path}: {kind}: defined {list(settings.get(kind, {}))}, used {sorted(used.get(kind, []))}")


write = "--write" in sys.argv
check_collector()
check_rules(write)
count = check_compose()
print(f"manifests: docker-compose.yml: {count} services")
for overlay in sorted((KUBERNETES / "overlays").iterdir()):
    resources = check_overlay(overlay)
    print(f"manifests: overlay {overlay.name}: {len(resources)} resources, Kubernetes {' and '.join(VERSIONS)}")
for text in problems:
    print(f"manifests: {text}", file=sys.stderr)
sys.exit(1 if problems else 0)
