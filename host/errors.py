"""The error tree of the host side. Its leaves are named by who must act.

::

    edge.errors.ShardwireError
    └── HostError
        ├── UserError               what was asked for must change
        │   ├── IngestError         the model, its inputs or a missing package
        │   │   └── UnsupportedModelError   a sound model that stages cannot run
        │   ├── RecipeError         the recipe file
        │   ├── QuantizeError       the model cannot be quantized as asked
        │   ├── DatasetError        the samples that accuracy is measured on
        │   ├── BudgetError         the budget, or a metric that it names
        │   ├── RecoverError        a pruned model cannot be recovered so; in compress/recover.py
        │   ├── BudgetUnmetError    nothing keeps the budget; in compress/search/search.py
        │   ├── ReportError         a report cannot be read or shown; in compress/report/records.py
        │   ├── EmulationError      the emulated processor cannot be had; in compress/emulate/root.py
        │   ├── PartitionError      no cut makes the model fit the profile
        │   ├── PackageError        the bundle, or the place where it should go
        │   └── PlanError           no plan fits the devices
        ├── RuntimeRefusedError     onnxruntime refused a graph; its caller knows whose fault that is
        ├── FleetError              a broker, device or link did not do its part
        └── InternalError           a bug of ours: please report it
            └── PassError           a graph pass broke the model and could not be left out

Each message is one line: what was wrong, where, and what to do.
"""

from __future__ import annotations

from edge.errors import ShardwireError


class HostError(ShardwireError):
    """Any error that the host raises on purpose."""


class UserError(HostError):
    """What was asked for cannot be done as asked; the user can change it."""


class IngestError(UserError):
    """The model or its inputs cannot be read, or a package that is needed is missing."""


class UnsupportedModelError(IngestError):
    """The model is sound, but a stage could not run it the same way twice."""


class RecipeError(UserError):
    """The recipe cannot be read, or does not fit the model."""


class QuantizeError(UserError):
    """The model cannot be quantized as the recipe says."""


class DatasetError(UserError):
    """The samples cannot be read, or do not fit the model or what is to be measured on them."""


class BudgetError(UserError):
    """The budget cannot be read, or a metric that it names does not fit the model."""


class PartitionError(UserError):
    """No legal cut keeps every shard within the profile's limit."""


class PackageError(UserError):
    """The bundle cannot be written, read or verified."""


class PlanError(UserError):
    """No placement of the stages fits the devices."""


class RuntimeRefusedError(HostError):
    """Onnxruntime refused a graph or failed while running it; callers turn it into the right error."""


class FleetError(HostError):
    """A broker, a device or a link did not do its part."""


class InternalError(HostError):
    """The host broke one of its own promises: a bug to report."""


class PassError(InternalError):
    """A graph pass changed what the model computes and could not be left out."""
