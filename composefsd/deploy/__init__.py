"""What belongs on the ESP, then putting it there.

`places` opens sysroot and partitions; `listing` tells what is deployed and plans; `change` deploys and removes;
`recovery` settles what was interrupted.  All of it is synchronous, works on directory descriptors, and never follows
a link on a partition.
"""

from composefsd.deploy.change import Removal, deploy, remove
from composefsd.deploy.listing import Listing, list_deployments, plan_deploy
from composefsd.deploy.partitions import BootPartitions
from composefsd.deploy.persistent import Directory
from composefsd.deploy.places import Places
from composefsd.deploy.plan import Addon, BootImage, Content, Kernel, Plan, Request, Uki
from composefsd.deploy.recovery import Recovery, recover
from composefsd.deploy.state import Deployment, DeploymentState, DeploymentType, File, Phase, VerityPolicy

__all__ = [
    "Addon",
    "BootImage",
    "BootPartitions",
    "Content",
    "Deployment",
    "DeploymentState",
    "DeploymentType",
    "Directory",
    "File",
    "Kernel",
    "Listing",
    "Phase",
    "Places",
    "Plan",
    "Recovery",
    "Removal",
    "Request",
    "Uki",
    "VerityPolicy",
    "deploy",
    "list_deployments",
    "plan_deploy",
    "recover",
    "remove",
]
