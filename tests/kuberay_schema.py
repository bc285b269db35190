"""KubeRay's custom resources RayCluster and RayJob, ``ray.io/v1``, as JSON schemas: the fields of their specs.

No package carries the custom resource definitions, so their fields are listed here, from the Go types that they are
generated from: KubeRay's ``ray-operator/apis/ray/v1``, ``raycluster_types.go`` (026f143324c0) and ``rayjob_types.go``
(0057210ed5a9). Statuses, autoscaler options and deletion strategies are left out: what is not listed is an error. Pod
templates are Kubernetes' own, and checked apart.
"""

from __future__ import annotations

from typing import Any

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_TEMPLATE = {"type": "object", "required": ["spec"]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


_HEAD = _object(
    ["rayStartParams", "template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
    enableIngress={"type": "boolean"},
    rayStartParams=_TEXTS,
    template=_TEMPLATE,
)
_WORKERS = _object(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string", "minLength": 1},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    rayStartParams=_TEXTS,
    template=_TEMPLATE,
)
_CLUSTER_SPEC = _object(
    ["headGroupSpec"],
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    headServiceAnnotations=_TEXTS,
    suspend={"type": "boolean"},
)
_JOB_SPEC = _object(
    [],
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=_COUNT,
    rayClusterSpec=_CLUSTER_SPEC,
    submitterPodTemplate=_TEMPLATE,
    metadata=_TEXTS,
    clusterSelector=_TEXTS,
    submitterConfig=_object([], backoffLimit=_COUNT),
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    entrypoint={"type": "string"},
    runtimeEnvYAML={"type": "string"},
    jobId={"type": "string"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointResources={"type": "string"},
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=_COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    suspend={"type": "boolean"},
)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata={"type": "object", "required": ["name"]},
        spec=spec,
    )


SCHEMAS = {"RayCluster": _resource("RayCluster", _CLUSTER_SPEC), "RayJob": _resource("RayJob", _JOB_SPEC)}
