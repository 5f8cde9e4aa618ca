"""RabbitMQ with its MQTT plugin (3.1.1): a node of its own in a folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from host.launch import BrokerSite, Launch, free_port

MISSING = "rabbitmq-server is not installed: apt-get install --no-install-recommends rabbitmq-server"

# Not the one on Debian's PATH, which becomes another user and works in a folder of the system.
_SCRIPTS = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/homebrew/sbin/rabbitmq-server")
_LOOPBACK = "127.0.0.1"


def find_rabbitmq() -> str | None:
    """Return the path of the script that starts a RabbitMQ, or None if there is none."""
    return next((script for script in _SCRIPTS if shutil.which(script)), None)


def launch_rabbitmq(site: BrokerSite) -> Launch:
    """Write its configuration and return what starts it.

    Anybody may connect as guest. Without persistence what an earlier node left in the folder is dropped. Its port
    mapper (epmd) is one of its own: the one that Erlang starts by itself would be left behind.
    """
    folder = site.folder
    if not site.persistence:
        shutil.rmtree(folder / "mnesia", ignore_errors=True)
    plugins, configuration = folder / "enabled_plugins", folder / "rabbitmq.conf"
    plugins.write_text("[rabbitmq_mqtt].\n", encoding="utf-8")
    configuration.write_text(_configuration(site), encoding="utf-8")
    for name in ("home", "mnesia", "logs"):
        (folder / name).mkdir(exist_ok=True)
    mapper_port = _port_but(site.port)
    mapper = shutil.which("epmd") or "epmd"
    return Launch(
        command=(find_rabbitmq() or "rabbitmq-server",),
        env=_environment(folder, plugins, configuration, mapper_port=mapper_port),
        beside=((mapper, "-port", str(mapper_port), "-address", _LOOPBACK),),
    )


def _configuration(site: BrokerSite) -> str:
    lines = [
        "listeners.tcp = none",
        f"mqtt.listeners.tcp.1 = {site.address}:{site.port}",
        "mqtt.allow_anonymous = true",
        "mqtt.default_user = guest",
        "mqtt.default_pass = guest",
        "loopback_users = none",
        # Without it a small message waits for the acknowledgement of the last one.
        "mqtt.tcp_listen_options.nodelay = true",
        "mqtt.tcp_listen_options.backlog = 128",
        "log.file = false",
        "log.console = true",
        "log.console.level = warning",
        # A disk with less than its default of 50 MB would stop all publishers.
        "disk_free_limit.absolute = 1MB",
    ]
    return "\n".join(lines) + "\n"


def _environment(folder: Path, plugins: Path, configuration: Path, *, mapper_port: int) -> dict[str, str]:
    return os.environ | {
        # The cookie of the node is kept there.
        "HOME": str(folder / "home"),
        # One name for one folder: the database is bound to it.
        "RABBITMQ_NODENAME": "shardwire@localhost",
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_CONFIG_FILE": str(configuration),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_DIST_PORT": str(_port_but(mapper_port)),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_PORT": str(mapper_port),
        "ERL_EPMD_ADDRESS": _LOOPBACK,
        # Lets the script become the node instead of waiting beside it, so that a signal reaches the node.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def _port_but(taken: int) -> int:
    while (port := free_port(_LOOPBACK)) == taken:
        continue
    return port
