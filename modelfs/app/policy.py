"""What the configuration allows to be read.

Rule: a version that was withdrawn is never read without a word of it.
"""

from __future__ import annotations

from modelfs.config import PolicyConfig
from modelfs.errors import Forbidden
from modelfs.ids import ModelName
from modelfs.repository.repository import Resolved


def check_yanked(policy: PolicyConfig, model: ModelName, found: Resolved) -> str | None:
    """The line that warns of a version that was withdrawn, or None. Raises Forbidden where the policy is "deny"."""
    reason = found.yanked
    if reason is None:
        return None
    what = f"{model}:{found.version.name} was withdrawn"
    if policy.yanked == "deny":
        raise Forbidden(what, why=reason, advice="policy.yanked does not allow to read it.")
    return f"warning: {what}: {reason}"
