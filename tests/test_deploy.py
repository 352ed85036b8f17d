"""The files of deploy/: names, paths and times in them hold, and their program does what they say.

Docker and Kubernetes are not needed: their files are read, and `app.py` runs with the settings and
the limits that they give to it.
"""

from __future__ import annotations

import configparser
import http.client
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
import websockets
import yaml
from websockets.sync.client import ClientConnection, connect

from tests.redis_server import RedisServer
from wsc_fast import ACKConfig, ConfigError, Hub, HubConfig
from wsc_fast.config.kinds import FOREVER, kinds_of
from wsc_fast.testing import Authority, wait_until

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
APP = (DEPLOY / "app.py").read_text()
SECRET = "a secret of 32 bytes, or of more"
# Seconds that a process may take to begin or to answer, on a machine that is busy.
PATIENCE = 60


def documents(path: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def objects(kind: str) -> list[Any]:
    """The objects of a kind in the manifests."""
    files = sorted(DEPLOY.glob("kubernetes/*.yaml"))
    return [each for path in files for each in documents(path) if each.get("kind") == kind]


(COMPOSE,) = documents(DEPLOY / "compose.yaml")
(DEPLOYMENT,) = objects("Deployment")
(CONFIG_MAP,) = objects("ConfigMap")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def unit(name: str) -> configparser.ConfigParser:
    """A unit of systemd; of a directive that is there twice the last one."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / name)
    return parser


SERVICE = unit("wsc-fast.service")["Service"]


# --- the environment ---


def assignments(text: str) -> dict[str, str]:
    """The variables of an environment file, those in comments too."""
    return dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, re.M))


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "systemd": assignments((DEPLOY / "systemd/wsc-fast.env").read_text()),
    "compose": COMPOSE["services"]["hub"]["environment"],
    "kubernetes": {
        **CONFIG_MAP["data"],
        **dict(
            re.findall(
                r"^ +# ([A-Z_]+): (.+)$", (DEPLOY / "kubernetes/configmap.yaml").read_text(), re.M
            )
        ),
        **{each["name"]: "" for each in CONTAINER["env"]},
    },
    "Dockerfile": {
        name: value
        for line in re.findall(r"^ENV (APP_.+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
        for name, value in (word.split("=") for word in line.split())
        if not name.startswith("PYTHON")
    },
}
SETTINGS = {f"WSC_{name.upper()}" for name in kinds_of(HubConfig)}
SETTINGS |= {f"WSC_ACK_{name.upper()}" for name in kinds_of(ACKConfig)}
# These start and stop the program.
MANAGERS = ("systemd", "compose", "kubernetes")
# Seconds for the callbacks and transports that end behind a stop (two), and for the process.
RESERVE = 10


@pytest.mark.parametrize("place", ENVIRONMENTS)
def test_each_variable_is_one_that_the_program_reads(place: str) -> None:
    names = set(ENVIRONMENTS[place])
    assert names
    assert {name for name in names if name.startswith("WSC_")} <= SETTINGS
    for name in (name for name in names if not name.startswith("WSC_")):
        assert f'"{name}"' in APP, name
        assert re.search(rf"\b{name}\b", APP.partition('"""\n')[0]), "not described"


@pytest.mark.parametrize("place", ENVIRONMENTS)
def test_each_value_is_one_that_its_setting_takes(place: str) -> None:
    values = ENVIRONMENTS[place]
    assert all(isinstance(value, str) for value in values.values())
    assert HubConfig.from_env(values) != HubConfig() or place == "Dockerfile"
    ACKConfig.from_env(values)


def seconds(text: object) -> float:
    return float(str(text).removesuffix("s"))


GRACE = {
    "systemd": seconds(SERVICE["TimeoutStopSec"]),
    "compose": seconds(COMPOSE["services"]["hub"]["stop_grace_period"]),
    "kubernetes": POD["terminationGracePeriodSeconds"]
    - seconds(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1]),
}


@pytest.mark.parametrize("place", MANAGERS)
def test_a_manager_waits_for_longer_than_drain_and_stop_take(place: str) -> None:
    drain = HubConfig.from_env(ENVIRONMENTS[place]).drain_period
    assert 0 < drain < FOREVER
    stop = inspect.signature(Hub.stop).parameters["timeout"].default
    assert GRACE[place] >= drain + stop + RESERVE


def test_the_limit_of_open_files_has_room_for_the_clients() -> None:
    limits = {
        "systemd": int(SERVICE["LimitNOFILE"]),
        "compose": COMPOSE["services"]["hub"]["ulimits"]["nofile"]["hard"],
    }
    for place, limit in limits.items():
        config = HubConfig.from_env(ENVIRONMENTS[place])
        assert limit >= config.max_connections + config.max_handshakes + 1_024


# --- systemd ---


def test_the_units_are_valid(tmp_path: Path) -> None:
    for name in ("wsc-fast.service", "wsc-fast.socket"):
        text = (DEPLOY / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace(SERVICE["ExecStart"].split()[0], sys.executable))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_has_a_user_of_its_own_and_sees_only_its_state() -> None:
    assert SERVICE["DynamicUser"] == SERVICE["NoNewPrivileges"] == "yes"
    assert SERVICE["ProtectSystem"] == "strict"
    assert SERVICE["CapabilityBoundingSet"] == ""
    state = f"/var/lib/{SERVICE['StateDirectory']}"
    assert SERVICE["WorkingDirectory"] == state
    assert Path(ENVIRONMENTS["systemd"]["APP_STORE"]).parent == Path(state)


def test_the_service_takes_the_socket_and_its_backlog() -> None:
    service, listening = unit("wsc-fast.service")["Unit"], unit("wsc-fast.socket")["Socket"]
    assert service["Requires"] == "wsc-fast.socket"
    assert int(listening["Backlog"]) >= HubConfig().backlog


def test_the_paths_of_the_unit_are_those_of_its_instructions() -> None:
    page = (DEPLOY / "README.md").read_text()
    for path in (*SERVICE["ExecStart"].split(), SERVICE["EnvironmentFile"]):
        assert str(Path(path).parent) in page, path


def test_each_kernel_setting_exists() -> None:
    text = (DEPLOY / "sysctl.d/90-wsc-fast.conf").read_text()
    found = re.findall(r"^(-?)([\w.]+) = ", text, re.M)
    assert len(found) > 3
    for optional, name in found:
        path = Path("/proc/sys", *name.split("."))
        assert path.exists() or optional or not Path("/proc/sys/fs").exists(), name


# --- Docker ---


DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
STAGES = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]


def test_the_image_is_built_of_files_that_are_there_and_not_ignored() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    ]
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {project["readme"], *project["license-files"], "setup.py", "src_cy", "wsc_fast"}
    assert needed < set(sources)
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(re.findall(r"^RUN .+$", DOCKERFILE, re.M))):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_image_has_no_compiler_no_root_and_no_shell_before_the_program() -> None:
    build, image = STAGES
    assert "gcc" in build
    assert "gcc" not in image
    assert "--no-index" in image
    assert re.search(r"^STOPSIGNAL SIGTERM$", image, re.M)
    user = re.search(r"^USER (\d+)$", image, re.M)
    assert user is not None
    assert int(user[1]) == POD["securityContext"]["runAsUser"] != 0
    for instruction in ("ENTRYPOINT", "CMD"):
        command = re.search(rf"(?:^|HEALTHCHECK .+ ){instruction} (\[.+\])$", image, re.M)
        assert command is not None
        assert json.loads(command[1])[:2] == ["python", "/app/app.py"]
    assert re.search(r"^COPY deploy/app\.py /app/app\.py$", image, re.M)


def test_the_composed_services_know_each_other() -> None:
    services = COMPOSE["services"]
    hub = services["hub"]
    assert (DEPLOY / hub["build"]["context"] / hub["build"]["dockerfile"]).samefile(
        DEPLOY / "Dockerfile"
    )
    assert re.search(r"//(\w+):", hub["environment"]["APP_STORE"])[1] in services  # type: ignore[index]
    assert set(hub["depends_on"]) < set(services)
    named = [volume for each in services.values() for volume in each.get("volumes", ())]
    for source in (volume.split(":")[0] for volume in named):
        assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), source
    (published,) = (port.split(":")[1] for port in hub["ports"])
    assert published == ENVIRONMENTS["Dockerfile"]["APP_PORT"]


def test_the_options_of_the_composed_store_are_those_of_a_server(tmp_path: Path) -> None:
    _, *options = shlex.split(COMPOSE["services"]["store"]["command"])
    with RedisServer(tmp_path, *options) as store, listening() as sock:
        for name, value in zip(options[::2], options[1::2], strict=True):
            assert store.command("CONFIG", "GET", name.removeprefix("--")) in (
                [name.removeprefix("--").encode(), value.encode()],
                {name.removeprefix("--").encode(): value.encode()},
            )
        with program(sock, tmp_path, APP_STORE=store.url) as process, client(sock, "ann") as ann:
            write(ann, "bob", "hello")
            process.send_signal(signal.SIGTERM)
            ended(process)
        with program(sock, tmp_path, APP_STORE=store.url), client(sock, "bob") as bob:
            assert json.loads(bob.recv(timeout=PATIENCE))["content"] == "hello"


# --- Kubernetes ---


def test_the_manifests_are_one_application() -> None:
    (kustomization,) = documents(DEPLOY / "kubernetes/kustomization.yaml")
    there = {path.name for path in DEPLOY.glob("kubernetes/*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    (service,), (budget,) = objects("Service"), objects("PodDisruptionBudget")
    assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == labels
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": CONFIG_MAP["metadata"]["name"]}}]


def test_the_probes_ask_the_port_of_the_program() -> None:
    port, _ = CONTAINER["ports"]
    assert str(port["containerPort"]) == ENVIRONMENTS["Dockerfile"]["APP_PORT"]
    (service,) = objects("Service")
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = CONTAINER[probe]["httpGet"]
        assert asked == {"path": "/health", "port": port["name"]}
        assert f'@hub.route("{asked["path"]}")' in APP


def test_prometheus_scrapes_the_port_for_metrics() -> None:
    port = ENVIRONMENTS["Dockerfile"]["APP_METRICS_PORT"]
    (prometheus,) = documents(DEPLOY / "prometheus/prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"hub:{port}"]}]
    assert "hub" in COMPOSE["services"]
    for name in prometheus["rule_files"]:
        assert (DEPLOY / "prometheus" / name).exists()
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == port
    assert {"name": "metrics", "containerPort": int(port)} in CONTAINER["ports"]
    # Clients do not reach it.
    (service,) = objects("Service")
    assert [each["name"] for each in service["spec"]["ports"]] == ["http"]
    assert not any(port in each for each in COMPOSE["services"]["hub"]["ports"])


def test_the_container_may_change_nothing() -> None:
    assert POD["securityContext"]["runAsNonRoot"]
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_page_has_each_file() -> None:
    page = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.name != "README.md" and "__pycache__" not in path.parts:
            folders = [f"{folder.name}/" for folder in path.parents if DEPLOY in folder.parents]
            assert path.name in page or any(folder in page for folder in folders), path.name


# --- the program ---


@contextmanager
def program(
    listening: socket.socket, folder: Path, **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """The program on a socket that is handed over, as systemd does."""
    command = ["sh", "-c", 'LISTEN_PID=$$ exec "$0" "$1"', sys.executable, str(DEPLOY / "app.py")]
    with subprocess.Popen(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LISTEN_FDS": "1",
            "APP_JWT_SECRET": SECRET,
            "WSC_DRAIN_PERIOD": "0.2",
            **environ,
        },
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[3],
        preexec_fn=partial(os.dup2, listening.fileno(), 3, True),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], within: float = GRACE["systemd"]) -> str:
    """The log of a program, which has to end well and in time."""
    _, err = process.communicate(timeout=within)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return err


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def token(user: str) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + 60}, SECRET, algorithm="HS256")


def client(
    server: socket.socket, user: str, connected: socket.socket | None = None
) -> ClientConnection:
    """A user's connection to the program on this socket."""
    return connect(
        f"ws://127.0.0.1:{port_of(server)}/ws",
        additional_headers={"Authorization": f"Bearer {token(user)}"},
        open_timeout=PATIENCE,
        sock=connected,
    )


def write(sender: ClientConnection, to: str, text: str) -> None:
    sender.send(json.dumps({"to": to, "text": text}))
    assert sender.recv(timeout=PATIENCE) == f"{to} will have it"


def code_of_the_end(connection: ClientConnection) -> int:
    with pytest.raises(websockets.ConnectionClosed) as caught:
        connection.recv(timeout=PATIENCE)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


@pytest.mark.parametrize(("drain", "code"), [("0.2", 1012), ("0", 1001)])
def test_sigterm_sends_the_clients_away_and_ends_well(
    drain: str, code: int, tmp_path: Path
) -> None:
    with (
        listening() as sock,
        program(sock, tmp_path, WSC_DRAIN_PERIOD=drain) as process,
        client(sock, "ann") as ann,
        client(sock, "bob") as bob,
    ):
        process.send_signal(signal.SIGTERM)
        assert [code_of_the_end(each) for each in (ann, bob)] == [code, code]
        ended(process)


def test_a_restart_refuses_nobody_and_loses_no_message(tmp_path: Path) -> None:
    store = str(tmp_path / "messages.db")
    with listening() as sock:
        with program(sock, tmp_path, APP_STORE=store) as process, client(sock, "ann") as ann:
            write(ann, "bob", "hello")
            process.send_signal(signal.SIGTERM)
            ended(process)
        # Nobody serves now: the connection waits in the backlog of the socket.
        waiting = socket.create_connection(("127.0.0.1", port_of(sock)), timeout=PATIENCE)
        with program(sock, tmp_path, APP_STORE=store), client(sock, "bob", waiting) as bob:
            assert json.loads(bob.recv(timeout=PATIENCE))["content"] == "hello"


def test_the_program_lets_in_nobody_without_a_token(tmp_path: Path) -> None:
    with listening() as sock, program(sock, tmp_path):
        with pytest.raises(websockets.InvalidStatus) as caught:
            connect(f"ws://127.0.0.1:{port_of(sock)}/ws", open_timeout=PATIENCE)
        assert caught.value.response.status_code == 401


def test_a_message_that_cannot_be_sent_is_answered(tmp_path: Path) -> None:
    with listening() as sock, program(sock, tmp_path), client(sock, "ann") as ann:
        for wrong in ("no JSON", b"\xff", '{"to": "bob"}', '{"to": "", "text": "x"}'):
            ann.send(wrong)
            assert str(ann.recv(timeout=PATIENCE)).startswith("not sent: ")


def test_sighup_without_tls_changes_nothing(tmp_path: Path) -> None:
    with (
        listening() as sock,
        program(sock, tmp_path) as process,
        client(sock, "ann") as ann,
    ):
        process.send_signal(signal.SIGHUP)
        write(ann, "bob", "hello")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_health_check_tells_whether_the_program_serves(
    tls: bool, tmp_path: Path, certificates: Authority
) -> None:
    pem = tmp_path / "server.pem"
    certificates.ca.issue_cert("app.example").private_key_and_cert_chain_pem.write_to_path(pem)
    is_well = runpy.run_path(str(DEPLOY / "app.py"))["is_well"]
    with listening() as sock:
        environ = {"APP_TLS_CERT": str(pem) if tls else "", "APP_PORT": str(port_of(sock))}
        with program(sock, tmp_path, **environ) as process:
            wait_until(lambda: is_well(environ), timeout=PATIENCE)
            wait_until(lambda: checked(environ) == 0, timeout=PATIENCE)
            process.send_signal(signal.SIGTERM)
            ended(process)
    assert checked(environ) == 1


def checked(environ: dict[str, str]) -> int:
    """The exit code of the command that Docker asks."""
    command = [sys.executable, str(DEPLOY / "app.py"), "check"]
    environ = {**os.environ, **environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environ, timeout=PATIENCE).returncode


def test_the_health_check_counts_the_clients(tmp_path: Path) -> None:
    with listening() as sock, program(sock, tmp_path), client(sock, "ann"):
        asked = http.client.HTTPConnection("127.0.0.1", port_of(sock), timeout=PATIENCE)
        asked.request("GET", "/health")
        with asked.getresponse() as answer:
            assert json.load(answer) == {"status": "healthy", "clients": 1}
        asked.close()


def test_the_program_has_metrics_on_a_port_of_their_own(tmp_path: Path) -> None:
    with listening() as sock, listening() as other:
        port = port_of(other)
        other.close()
        with program(sock, tmp_path, APP_METRICS_PORT=str(port)), client(sock, "ann"):
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            asked.request("GET", "/metrics")
            with asked.getresponse() as answer:
                assert b"\nwsc_connected_clients 1.0\n" in answer.read()
            asked.close()


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"APP_JWT_SECRET": ""}, "APP_JWT_SECRET is not set"),
        ({"APP_JWT_SECRET": "short"}, "APP_JWT_SECRET: .* 32 at least"),
        ({"WSC_MAX_CONNECTIONS": "many"}, "WSC_MAX_CONNECTIONS is 'many'"),
        ({"APP_PORT": "tcp://10.0.0.1:80"}, "APP_PORT is 'tcp://10.0.0.1:80'"),
    ],
    ids=["no secret", "a short one", "a setting", "a port"],
)
def test_a_mistake_in_the_environment_names_its_variable(
    environ: dict[str, str], text: str
) -> None:
    app = runpy.run_path(str(DEPLOY / "app.py"))
    read = app["port_of"] if "APP_PORT" in environ else app["create_hub"]
    with pytest.raises(ConfigError, match=text):
        read({"APP_JWT_SECRET": SECRET, **environ})


@pytest.mark.parametrize("name", ["APP_STORE", "APP_TLS_CERT"])
def test_a_file_that_is_not_there_ends_the_program_with_one_line(name: str, tmp_path: Path) -> None:
    with listening() as sock, program(sock, tmp_path, **{name: "no/such/file"}) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert re.fullmatch("(app|wsc_fast): .*no/such/file.*", err.splitlines()[-1])
