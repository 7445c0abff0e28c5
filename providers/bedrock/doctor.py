"""What is missing before a job can run at Bedrock, found out by reads only: credentials, region, buckets, model, rights, role, quota.

    for finding in diagnose(spec.options.bedrock, os.environ, model="amazon.nova-micro-v1:0:128k"):
        print(finding)

Rights are asked from IAM's policy simulator, which knows the identity's policies and not those of buckets, keys or the
organisation; where the caller may not ask, the finding is unknown and names what to look at by hand.
Sources: Bedrock user guide, "Create a service role for model customization" (trust and role policies) and "Encryption of
model customization jobs"; IAM API SimulatePrincipalPolicy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from tuneport.core.errors import CredentialsError, ProviderError, TuneportError
from tuneport.core.options import BedrockOptions
from tuneport.providers.bedrock.aws import Aws
from tuneport.providers.bedrock.client import NEEDED
from tuneport.providers.bedrock.errors import MODEL_FIX, code_of, translated
from tuneport.providers.bedrock.models import base_model
from tuneport.providers.bedrock.storage import Place, bucket_region
from tuneport.providers.doctor import Finding

SERVICE = "bedrock.amazonaws.com"

CALLER_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "bedrock": (
        "bedrock:CreateModelCustomizationJob", "bedrock:GetModelCustomizationJob", "bedrock:ListModelCustomizationJobs",
        "bedrock:StopModelCustomizationJob", "bedrock:TagResource", "bedrock:ListTagsForResource", "bedrock:GetFoundationModel",
    ),
    "data": ("s3:PutObject", "s3:GetObject"),
    "output": ("s3:GetObject",),
    "data bucket": ("s3:ListBucket",),
    "output bucket": ("s3:ListBucket",),
    "role": ("iam:PassRole",),
}
"""What tuneport itself calls for a job, by what it is done to."""

SERVING_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "bedrock": (
        "bedrock:GetCustomModel", "bedrock:DeleteCustomModel", "bedrock:InvokeModel",
        "bedrock:CreateCustomModelDeployment", "bedrock:GetCustomModelDeployment", "bedrock:ListCustomModelDeployments",
        "bedrock:DeleteCustomModelDeployment", "bedrock:CreateProvisionedModelThroughput", "bedrock:GetProvisionedModelThroughput",
        "bedrock:ListProvisionedModelThroughputs", "bedrock:DeleteProvisionedModelThroughput",
    ),
}
"""What it calls after training, to deploy, ask and delete a tuned model."""

ROLE_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "data": ("s3:GetObject",),
    "data bucket": ("s3:ListBucket",),
    "output": ("s3:GetObject", "s3:PutObject"),
    "output bucket": ("s3:ListBucket",),
    "key": ("kms:Decrypt", "kms:GenerateDataKey", "kms:DescribeKey", "kms:CreateGrant"),
    "network": (
        "ec2:DescribeNetworkInterfaces", "ec2:DescribeVpcs", "ec2:DescribeDhcpOptions", "ec2:DescribeSubnets",
        "ec2:DescribeSecurityGroups", "ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface",
    ),
    "grader": ("lambda:InvokeFunction",),
}
"""What Bedrock does under the role."""

_DENIALS = ("AccessDenied", "AccessDeniedException", "403")


def diagnose(options: BedrockOptions, environment: Mapping[str, str], *, model: str | None = None) -> list[Finding]:
    """Every check that can be made with these options, in the order in which a job would need them. Changes nothing at AWS.

    ``environment`` names region and profile; keys come from AWS's own chain. ``model`` is the base model's id at Bedrock;
    without it, only whether the region tunes anything is checked. Raises nothing of AWS's: an error becomes a finding.
    """
    return list(_Doctor(options, Aws(environment=environment), model).findings())


class _Doctor:
    def __init__(self, options: BedrockOptions, aws: Aws, model: str | None) -> None:
        self._options, self._aws, self._model = options, aws, model
        self._region = ""
        self._account = self._caller = ""

    def findings(self) -> Iterator[Finding]:
        try:
            self._region = self._aws.region(self._options.region)
            yield Finding("region", "ok", self._region)
        except TuneportError as error:
            yield _missing("region", error)
            return
        try:
            with translated():
                identity = self._client("sts").get_caller_identity()
            self._account, self._caller = str(identity["Account"]), str(identity["Arn"])
            yield Finding("credentials", "ok", f"{self._caller} of account {self._account}")
        except CredentialsError as error:
            yield _missing("credentials", error)
            return
        except TuneportError as error:
            yield _unknown("credentials", error)
            return
        yield from self._settings()
        yield from self._buckets()
        yield from self._base_model()
        yield from self._checked("caller", self._rights_of_caller)
        if self._options.role_arn:
            yield from self._checked("role", self._role)
        yield from self._checked("quota", self._quotas)

    # Checks

    def _settings(self) -> Iterator[Finding]:
        for name, what in NEEDED.items():
            if getattr(self._options, name) is None:
                yield Finding(f"options.bedrock.{name}", "missing", f"not set: {what}", f"set options.bedrock.{name} in the spec")
        role = self._options.role_arn
        if role and role.split(":")[4] not in ("", self._account):
            message = f"the role {role} belongs to account {role.split(':')[4]}, and these credentials to {self._account}"
            yield Finding("options.bedrock.role_arn", "missing", message, "use a role of this account, or credentials of the other")

    def _buckets(self) -> Iterator[Finding]:
        for name in ("data_s3_uri", "output_s3_uri"):
            uri = getattr(self._options, name)
            if uri is None:
                continue
            bucket, check = Place.of(uri).bucket, f"options.bedrock.{name}"
            try:
                found = bucket_region(self._client("s3"), bucket)
            except CredentialsError as error:
                if code_of(error) == "403":
                    fix = f"allow s3:ListBucket on arn:aws:s3:::{bucket} to {self._caller}, or use a bucket of this account"
                    yield Finding(check, "missing", f"bucket {bucket} is closed to these credentials", fix)
                else:
                    yield _missing(check, error)
                continue
            except ProviderError as error:
                yield _missing(check, error) if error.retry == "no" else _unknown(check, error)
                continue
            if found is None:
                fix = f"make sure that it is in {self._region}"
                yield Finding(check, "unknown", f"AWS does not tell the region of bucket {bucket}", fix)
            elif found != self._region:
                fix = f"use a bucket in {self._region}, or set options.bedrock.region to {found}"
                yield Finding(check, "missing", f"bucket {bucket} is in {found}, and the job would run in {self._region}", fix)
            else:
                yield Finding(check, "ok", f"bucket {bucket} is in {found}")

    def _base_model(self) -> Iterator[Finding]:
        client = self._client("bedrock")
        try:
            if self._model is not None:
                yield self._lifecycle(base_model(client, self._model, self._region))
                return
            with translated():
                tuned = client.list_foundation_models(byCustomizationType="FINE_TUNING").get("modelSummaries") or ()
        except CredentialsError as error:
            yield _missing("model", error)
        except TuneportError as error:
            yield _unknown("model", error)
        else:
            active = [m["modelId"] for m in tuned if (m.get("modelLifecycle") or {}).get("status") == "ACTIVE"]
            if active:
                yield Finding("model", "ok", f"{self._region} tunes {len(active)} active base models, e.g. {active[0]}")
            else:
                yield Finding("model", "missing", f"{self._region} tunes no active base model", "set options.bedrock.region to another")

    def _lifecycle(self, found: Any) -> Finding:
        if found.why_unknown:
            fix = "allow bedrock:GetFoundationModel, or look at the model's page in the Bedrock console"
            return Finding("model", "unknown", f"the lifecycle of {self._model} is not known ({found.why_unknown})", fix)
        if found.refused:
            return Finding("model", "missing", found.refused, MODEL_FIX)
        offered = ", ".join(found.customizations) or "no customization"
        return Finding("model", "ok", f"{self._model} is active in {self._region} ({offered})")

    def _rights_of_caller(self) -> Iterator[Finding]:
        source = self._identity()
        if source is None:
            fix = "root may do all; otherwise ask with a user or role of IAM"
            yield Finding("caller", "unknown", f"the rights of {self._caller} cannot be simulated", fix)
            return
        context = [{"ContextKeyName": "iam:PassedToService", "ContextKeyValues": [SERVICE], "ContextKeyType": "string"}]
        yield from self._simulated("caller", source, CALLER_ACTIONS, context)
        yield from self._simulated("caller, after training", source, SERVING_ACTIONS, [])

    def _role(self) -> Iterator[Finding]:
        role = str(self._options.role_arn)
        try:
            with translated():
                found = self._client("iam").get_role(RoleName=role.rpartition("/")[2])["Role"]
        except ProviderError as error:
            if code_of(error) in ("NoSuchEntity", "NoSuchEntityException"):
                fix = f"create it with a trust policy for {SERVICE}, or correct options.bedrock.role_arn"
                yield Finding("role", "missing", f"there is no role {role}", fix)
                return
            raise
        yield self._trust(role, found.get("AssumeRolePolicyDocument"))
        yield from self._simulated("role", role, ROLE_ACTIONS, [])

    def _trust(self, role: str, document: Any) -> Finding:
        policy = document if isinstance(document, Mapping) else json.loads(unquote(str(document)))
        fix = f"let its trust policy allow sts:AssumeRole to the service {SERVICE}"
        reasons = []
        for statement in _listed(policy.get("Statement")):
            principal = statement.get("Principal")
            services = _listed(principal.get("Service")) if isinstance(principal, Mapping) else ()
            actions = [str(action).lower() for action in _listed(statement.get("Action"))]
            if statement.get("Effect") != "Allow" or SERVICE not in services or not {"sts:assumerole", "sts:*", "*"}.intersection(actions):
                continue
            other = self._unmet(statement.get("Condition") or {})
            if not other:
                return Finding("role: trust", "ok", f"{role} trusts {SERVICE}")
            reasons.append(other)
        if reasons:
            return Finding("role: trust", "missing", f"{role} trusts {SERVICE} only where {'; '.join(reasons)}", "correct that condition")
        return Finding("role: trust", "missing", f"{role} does not trust {SERVICE}", fix)

    def _unmet(self, conditions: Mapping[str, Any]) -> str:
        """The condition that jobs of this account and region do not meet; "" when none is known to be unmet."""
        for operator, pairs in conditions.items():
            for name, values in pairs.items():
                wanted = [str(value) for value in _listed(values)]
                if name.lower() == "aws:sourceaccount" and self._account not in wanted:
                    return f"{name} is {', '.join(wanted)}, and this account is {self._account}"
                arn = f"arn:aws:bedrock:{self._region}:{self._account}:model-customization-job/x"
                if name.lower() == "aws:sourcearn" and not any(_like(pattern, arn) for pattern in wanted):
                    return f"{name} ({operator}) is {', '.join(wanted)}, which no job of account {self._account} in {self._region} has"
        return ""

    def _quotas(self) -> Iterator[Finding]:
        client, token = self._client("service-quotas"), dict[str, str]()
        zero: list[str] = []
        seen = 0
        while True:
            with translated():
                page = client.list_service_quotas(ServiceCode="bedrock", **token)
            for quota in page.get("Quotas") or ():
                name = str(quota.get("QuotaName"))
                if re.search(r"customization jobs?|custom models? ", name, re.I):
                    seen += 1
                    zero += [name] if quota.get("Value") == 0 else []
            if not page.get("NextToken"):
                break
            token = {"NextToken": page["NextToken"]}
        if zero:
            fix = "ask for more (Service Quotas, Amazon Bedrock)"
            yield Finding("quota", "missing", f"the quota is 0 for: {'; '.join(zero)}", fix)
        elif seen:
            yield Finding("quota", "ok", f"none of the {seen} quotas on customization is 0")
        else:
            yield Finding("quota", "unknown", "Service Quotas lists none on customization", "look at Service Quotas, Amazon Bedrock")

    # Inner parts

    def _checked(self, check: str, findings: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
        """The findings of a check that the caller may lack the right for; that is unknown, not missing: a job does not need it."""
        try:
            yield from findings()
        except TuneportError as error:
            yield _unknown(check, error)

    def _simulated(
        self, who: str, source: str, wanted: Mapping[str, tuple[str, ...]], context: list[dict[str, Any]]
    ) -> Iterator[Finding]:
        targets = self._targets()
        allowed: list[str] = []
        for name, actions in wanted.items():
            for target in targets.get(name, ()):
                for action, decision in self._decisions(source, actions, target, context):
                    if decision == "allowed":
                        allowed.append(action)
                    else:
                        how = "is denied by a policy" if decision == "explicitDeny" else "is allowed by no policy"
                        fix = f"allow {action} on {target} to {source}"
                        yield Finding(f"{who}: {action}", "missing", f"{action} on {target} {how} of {source}", fix)
        if allowed:
            yield Finding(f"{who}: rights", "ok", f"{source} may {', '.join(dict.fromkeys(allowed))}")

    def _decisions(
        self, source: str, actions: Iterable[str], target: str, context: list[dict[str, Any]]
    ) -> Iterator[tuple[str, str]]:
        marker: dict[str, str] = {}
        while True:
            with translated():
                page = self._client("iam").simulate_principal_policy(
                    PolicySourceArn=source, ActionNames=list(actions), ResourceArns=[target], ContextEntries=context, **marker
                )
            for result in page.get("EvaluationResults") or ():
                yield str(result["EvalActionName"]), str(result["EvalDecision"])
            if not page.get("IsTruncated"):
                return
            marker = {"Marker": page["Marker"]}

    def _targets(self) -> dict[str, tuple[str, ...]]:
        """What is acted on, as ARNs; what the options do not name is left out."""
        found: dict[str, tuple[str, ...]] = {"bedrock": ("*",)}
        for name, uri in (("data", self._options.data_s3_uri), ("output", self._options.output_s3_uri)):
            if uri:
                place = Place.of(uri)
                found[name] = (f"arn:aws:s3:::{place.under('*').uri.removeprefix('s3://')}",)
                found[f"{name} bucket"] = (f"arn:aws:s3:::{place.bucket}",)
        if self._options.role_arn:
            found["role"] = (self._options.role_arn,)
        key = self._options.kms_key_id
        if key:
            found["key"] = (key if key.startswith("arn:") else f"arn:aws:kms:{self._region}:{self._account}:{_key_path(key)}",)
        if self._options.subnet_ids:
            found["network"] = ("*",)
        if self._options.reward_lambda_arn:
            found["grader"] = (self._options.reward_lambda_arn,)
        return found

    def _identity(self) -> str | None:
        """The user or role whose policies hold for the caller, as IAM's simulator takes it; None for root and federated users."""
        kind, _, rest = self._caller.split(":", 5)[5].partition("/")
        if kind == "user":
            return self._caller
        if kind != "assumed-role":
            return None
        with translated():  # its path stands only in the role itself
            return str(self._client("iam").get_role(RoleName=rest.partition("/")[0])["Role"]["Arn"])

    def _client(self, service: str) -> Any:
        return self._aws.client(service, self._region)


def _missing(check: str, error: TuneportError) -> Finding:
    return Finding(check, "missing", error.what, error.fix)


def _unknown(check: str, error: TuneportError) -> Finding:
    if code_of(error) in _DENIALS:
        fix = "a job does not need the right to ask; look by hand, or ask with an administrator's credentials"
        return Finding(check, "unknown", f"these credentials may not ask ({error.what})", fix)
    return Finding(check, "unknown", f"it could not be asked ({error.what})", error.fix)


def _listed(value: Any) -> tuple[Any, ...]:
    """IAM writes one element of a list without its brackets."""
    return () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _like(pattern: str, text: str) -> bool:
    """IAM's wildcards: * and ?. A job's ARN has an unknown end, so a longer literal pattern counts as met."""
    parts = ["".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in part) for part in pattern.split("/")]
    return re.fullmatch(parts[0], text.partition("/")[0]) is not None


def _key_path(key: str) -> str:
    return key if key.startswith("alias/") else f"key/{key}"
