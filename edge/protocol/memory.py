"""What an agent has seen that it must not forget: marks and deaths, and what they forbid. Part of the session."""

import msgspec

from edge.errors import Downgrade, Expired
from edge.formats.bundle import Manifest
from edge.formats.message import Lease
from edge.formats.plan import Deployment
from edge.protocol.marks import Deaths, ForgetDeaths, Marks, SaveMarks, model_of, natural_order

MOST_DEATHS = 3
"""An epoch that the agent died of so often is not loaded again."""

FIT_SECONDS = 60.0
"""An epoch that ran this long is forgiven the deaths before: it is not what an operator's three kills were due to."""

_DATE_LENGTH = len("YYYY-MM-DD")


class Memory:
    """Keeps the marks of a device, and says when they have to be written."""

    def __init__(self, marks: Marks, deaths: Deaths) -> None:
        self.marks = marks
        self._deaths = dict(deaths)

    def cordon(self, cordoned: bool) -> list[SaveMarks]:
        """Be left out of new plans, or no longer."""
        return self._change(msgspec.structs.replace(self.marks, cordoned=cordoned))

    def saw_lease(self, lease: Lease) -> list[SaveMarks]:
        """Keep the largest lease."""
        known = self.marks.lease
        if known is not None and lease_order(lease) <= lease_order(known):
            return []
        return self._change(msgspec.structs.replace(self.marks, lease=lease))

    def saw(self, deployment: Deployment) -> list[SaveMarks]:
        """Note when a coordinator made this: time only goes on.

        Written once a day at most: expiry is judged by the date.
        """
        before = self.marks
        if deployment.issued <= before.issued:
            return []
        self.marks = msgspec.structs.replace(before, issued=deployment.issued)
        is_new_day = deployment.issued[:_DATE_LENGTH] != before.issued[:_DATE_LENGTH]
        return [SaveMarks(marks=self.marks)] if is_new_day else []

    def served(self, deployment: str, manifest: Manifest) -> list[SaveMarks]:
        """Note the version of what is served here."""
        return self._change(self.marks.with_version(model_of(deployment, manifest.name), manifest.version))

    def judge(self, deployment: Deployment, manifest: Manifest) -> None:
        """Refuse a bundle that must not become active here.

        Raises:
            Downgrade: a newer version of the model was served here, and this is no rollback.
            Expired: its last day is before the newest day that the device has seen.
        """
        newest = self.marks.versions.get(model_of(deployment.name, manifest.name))
        if newest is not None and not deployment.rolls_back and natural_order(manifest.version) < natural_order(newest):
            raise Downgrade(
                f"{manifest.name} {manifest.version} is older than {newest}, which was served here as "
                f"{deployment.name}: deploy it with --allow-older, or roll back"
            )
        today = self.marks.issued[:_DATE_LENGTH]
        if manifest.expires is not None and manifest.expires < today:
            raise Expired(f"{manifest.name} {manifest.version} expired on {manifest.expires[:40]}; it is {today}")

    def is_unfit(self, deployment: str, epoch: str) -> bool:
        """Tell whether the agent died too often of an epoch."""
        return self._deaths.get((deployment, epoch), 0) >= MOST_DEATHS

    def forgive(self, deployment: str, epoch: str) -> list[ForgetDeaths]:
        """Forget the deaths of an epoch that did well or is gone."""
        if self._deaths.pop((deployment, epoch), None) is None:
            return []
        return [ForgetDeaths(deployment=deployment, epoch=epoch)]

    def _change(self, marks: Marks) -> list[SaveMarks]:
        if marks == self.marks:
            return []
        self.marks = marks
        return [SaveMarks(marks=marks)]


def lease_order(lease: Lease) -> tuple[int, str]:
    """Return what leases are ordered by."""
    return lease.term, lease.coordinator
