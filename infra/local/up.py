"""A whole cluster on this machine, for trying out and for tests; everything in it is gone when it ends.

    python infra/local/up.py                      prints what to export, and waits for ctrl-c
    python infra/local/up.py -- latentmill ...    runs a command with that environment, then stops

A Ray head and workers that ask for a token, an MLflow server on PostgreSQL, an S3 server (moto) and
Prometheus, each on a free port of the loopback interface. It needs Debian's packages `postgresql` and
`prometheus`.

With `--isolated` (as root) each Ray node is as good as a machine of its own: its own processes, /tmp and
shared memory, and the project's folder is empty on it. Nothing is shared then but the network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PORTS = range(20_000, 32_000)
"""Above those that Ray gives its workers (10002 to 19999), below those of outgoing connections."""
PATIENCE = 120.0
"""Seconds that a service may take to answer; eight to twenty are usual."""
BUCKET = "latentmill"
DROPPED = ("RAY_", "AWS_", "MLFLOW_", "LATENTMILL_")
"""Variables of the caller that would lead the services astray."""
PROJECT = Path(__file__).resolve().parents[2]
ISOLATE = """set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/node /mnt/python
mount --bind "$NODE" /mnt/node
mount --bind "$PYTHON" /mnt/python
mount --bind /mnt/node /tmp
mount -t tmpfs tmpfs /dev/shm
mkdir -p "$PROJECT"
mount -t tmpfs tmpfs "$PROJECT"
mkdir -p "$PYTHON"
mount --bind /mnt/python "$PYTHON"
exec "$@"
"""
"""Makes a node of a process: /tmp is its own folder, and of the project it has only Python."""


def missing(*, isolated: bool = False) -> list[str]:
    """What is to be done before a cluster can start here; empty if it can."""
    todo = []
    if _postgres("initdb") is None:
        todo.append("apt-get install postgresql")
    if shutil.which("prometheus") is None:
        todo.append("apt-get install prometheus")
    for module, package in (("moto", "moto[s3]"), ("psycopg2", "psycopg2-binary"), ("s3fs", "s3fs")):
        if not any((Path(folder) / module).is_dir() for folder in sys.path if folder):
            todo.append(f"pip install '{package}'")
    if isolated and (os.geteuid() != 0 or not _can_unshare()):
        todo.append("be root, where namespaces are allowed")
    return todo


@dataclass
class Cluster:
    """Running services. Use `up()`, which stops them."""

    folder: Path
    isolated: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    """More environment of Ray's processes."""
    environment: dict[str, str] = field(default_factory=dict)
    """What a client is to have in its own."""
    dashboard: str = ""
    """URL of Ray's dashboard, and of its job server."""
    tracking: str = ""
    """URL of the MLflow server."""
    prometheus: str = ""
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Name -> process of a Ray worker node."""
    _started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _gcs: str = ""

    def start(self, *, workers: int, cpus: int) -> None:
        """Starts all and waits until all answer.

        Raises:
            RuntimeError: a service ended, or did not answer in time; with the end of its log.
        """
        self.folder.chmod(0o711)  # PostgreSQL runs as another user, and must get to its folder
        s3, tracking, prometheus = self._store(), self._database(), _free_port()
        self.prometheus = f"http://127.0.0.1:{prometheus}"
        self._record(tracking)
        self._head()
        self._scrape(prometheus)
        for _ in range(workers):
            self.add_worker(cpus=cpus, wait=False)
        self._wait(f"{s3}/moto-api/", "s3")
        self._wait(f"{self.tracking}/health", "mlflow")
        self._wait(f"{self.prometheus}/-/ready", "prometheus")
        self._wait_for(lambda: len(self.nodes()) > workers, "head")

    def add_worker(self, *, cpus: int = 1, wait: bool = True) -> str:
        """Starts one more Ray worker node; its name."""
        name = f"worker{sum(n.startswith('worker') for n in self._started) + 1}"
        before = len(self.nodes()) if wait else 0
        self.workers[name] = self._ray(name, ["--address", self._gcs, "--num-cpus", str(cpus)])
        if wait:
            self._wait_for(lambda: len(self.nodes()) > before, name)
        return name

    def kill_worker(self, name: str) -> None:
        """Takes a node away as a power cut does: every process of it, at once and unasked."""
        _kill(self.workers.pop(name), self._mark(name))

    def nodes(self) -> list[str]:
        """Ids of the Ray nodes that are alive."""
        token = self.environment["RAY_AUTH_TOKEN"]
        asked = urllib.request.Request(f"{self.dashboard}/nodes?view=summary")
        asked.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                listed = json.load(answer)["data"]["summary"]
        except (OSError, ValueError, KeyError):
            return []
        return [n["raylet"]["nodeId"] for n in listed if n["raylet"].get("state") == "ALIVE"]

    def stop(self) -> None:
        """Ends every process that was started, Ray's first, and removes the folder."""
        order = sorted(self._started, key=lambda name: (name in ("postgres", "s3", "mlflow"), name))
        for name in order:
            process = self._started.pop(name)
            if name == "postgres":
                _ask(process, signal.SIGINT)  # killed, it would leave its shared memory behind
            _kill(process, self._mark(name))
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self, name: str) -> str:
        """What a service has printed: "head", "worker1", "mlflow", "postgres", "s3" or "prometheus"."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _store(self) -> str:
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
        self.environment |= keys | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url}
        self.environment["LATENTMILL_STORE"] = f"s3://{BUCKET}/store"
        self._run("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
        self._wait(f"{url}/moto-api/", "s3")
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=10).close()
        return url

    def _database(self) -> str:
        """A PostgreSQL server; the URL of MLflow's database in it."""
        port, password, data = _free_port(), secrets.token_hex(16), self.folder / "postgres"
        data.mkdir()
        secret = data.with_suffix(".password")
        secret.write_text(password)
        user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        for path in (data, secret):
            path.chmod(0o700)
            if user:
                shutil.chown(path, user)
        create = [_postgres("initdb"), "-D", data, "-U", "mlflow", "-A", "scram-sha-256", "-E", "UTF8"]
        create += ["--locale=C", "--no-sync", f"--pwfile={secret}"]
        made = subprocess.run(
            [str(word) for word in create], user=user, cwd=data, capture_output=True, text=True
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr.strip()}")
        secret.unlink()
        serve = [_postgres("postgres"), "-D", data, "-p", port, "-h", "127.0.0.1", "-k", ""]
        self._run("postgres", [*map(str, serve), "-c", "fsync=off"], user=user, cwd=data)
        login = {"PGPASSWORD": password, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow"}

        def created() -> bool:
            command = [_postgres("createdb"), "mlflow"]
            asked = subprocess.run(command, env=os.environ | login, capture_output=True)
            return asked.returncode == 0

        self._wait_for(created, "postgres")
        return f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{port}/mlflow"

    def _record(self, database: str) -> None:
        port = _free_port()
        self.tracking = self.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        command = [_program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        # the database's password stays out of the list of processes
        own = {
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_S3_ENDPOINT_URL": self.environment["AWS_ENDPOINT_URL"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self._run("mlflow", command, more=own)

    def _head(self) -> None:
        gcs, dashboard, client = _free_port(), _free_port(), _free_port()
        self._gcs, self.dashboard = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment["RAY_API_SERVER_ADDRESS"] = self.dashboard
        if not self.isolated:
            self.environment["RAY_ADDRESS"] = self._gcs
        arguments = ["--head", "--port", str(gcs), "--dashboard-host", "127.0.0.1", "--num-cpus", "0"]
        arguments += ["--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)]
        self._ray("head", arguments)
        self._wait_for(lambda: bool(self.nodes()), "head")

    def _ray(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """One Ray node, with ports of its own: all nodes have one address."""
        node = self.folder / name
        node.mkdir(mode=0o1777)
        command = [_program("ray"), "start", "--block", "--node-ip-address", "127.0.0.1", *arguments]
        command += ["--node-name", name, "--object-store-memory", str(120 * 2**20), "--disable-usage-stats"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        for port in ("metrics-export-port", "dashboard-agent-listen-port", "node-manager-port"):
            command += [f"--{port}", str(_free_port())]
        own = {"RAY_PROMETHEUS_HOST": self.prometheus, "MLFLOW_DISABLE_TELEMETRY": "true"}
        if not self.isolated:
            return self._run(name, [*command, "--temp-dir", str(node)], more=own | dict(self.settings))
        own |= {"NODE": str(node), "PYTHON": sys.prefix, "PROJECT": str(PROJECT), "HOME": "/tmp"}
        own |= {"LATENTMILL_CACHE": "/tmp/cache", **self.settings}
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return self._run(
            name,
            [*unshare, "sh", "-c", ISOLATE, "node", *command, "--temp-dir", "/tmp/ray"],
            more=own,
            cwd="/",
        )

    def _scrape(self, port: int) -> None:
        temporary = self.folder / "head" / ("ray" if self.isolated else "")
        targets = json.dumps(str(temporary / "prom_metrics_service_discovery.json"))
        config = self.folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 2s}\n"
            "scrape_configs:\n"
            f"  - {{job_name: ray, file_sd_configs: [{{files: [{targets}], refresh_interval: 2s}}]}}\n"
        )
        command = ["prometheus", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"]
        self._run("prometheus", [*command, f"--storage.tsdb.path={self.folder / 'prometheus'}"])

    def _run(
        self,
        name: str,
        command: Sequence[str],
        *,
        more: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
        mark = {"LATENTMILL_LOCAL_CLUSTER": self._mark(name)}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
        with open(self.folder / f"{name}.log", "wb") as log:
            process = self._started[name] = subprocess.Popen(
                command,
                env={**kept, **self.environment, **(more or {}), **mark},
                user=user,
                cwd=cwd or self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return process

    def _mark(self, name: str) -> str:
        return str(self.folder / name)

    def _wait(self, url: str, name: str) -> None:
        self._wait_for(lambda: _answers(url), name)

    def _wait_for(self, there: Callable[[], bool], name: str) -> None:
        end = time.monotonic() + PATIENCE
        while not there():
            if self._started[name].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start:\n{self.log(name)[-3000:]}")
            time.sleep(0.2)


@contextlib.contextmanager
def up(
    *, workers: int = 2, cpus: int = 1, isolated: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A cluster while the block runs.

    Args:
        workers: Ray nodes beside the head, which has no CPUs to give.
        cpus: of each worker.
        isolated: whether each Ray node has its own processes, /tmp and shared memory, and not this project.
        settings: more environment of Ray's processes, and so of all that they start.

    Raises:
        ValueError: something must be installed first.
        RuntimeError: a service did not start.
    """
    if todo := missing(isolated=isolated):
        raise ValueError(f"A local cluster cannot start yet; first: {'; '.join(todo)}.")
    # A short path: Ray's sockets lie in it, and their names have room for 107 bytes.
    cluster = Cluster(
        Path(tempfile.mkdtemp(prefix="mill-", dir="/tmp")), isolated=isolated, settings=settings or {}
    )
    try:
        cluster.start(workers=workers, cpus=cpus)
        yield cluster
    finally:
        cluster.stop()


def _kill(process: subprocess.Popen[bytes], mark: str) -> None:
    """The process with its session, their descendants, and whatever bears its mark."""
    found: dict[int, psutil.Process] = {}
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            own = os.getsid(candidate.pid) == process.pid
            if own or candidate.environ().get("LATENTMILL_LOCAL_CLUSTER") == mark:
                found |= {p.pid: p for p in (candidate, *candidate.children(recursive=True))}
    for doomed in found.values():
        with contextlib.suppress(psutil.Error):
            doomed.kill()
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    psutil.wait_procs(list(found.values()), timeout=10)


def _ask(process: subprocess.Popen[bytes], number: int) -> None:
    """To end by itself, for ten seconds."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        process.send_signal(number)
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.HTTPError):
        return False


def _free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("There is no free port between 20000 and 32000.")


def _program(name: str) -> str:
    """A command of this Python's environment."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def _postgres(name: str) -> str | None:
    """Debian keeps PostgreSQL's programs off the path, one folder a version."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    return str(versions[-1]) if versions else shutil.which(name)


def _can_unshare() -> bool:
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "mount",
        "-t",
        "tmpfs",
        "tmpfs",
        "/mnt",
    ]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="Ray worker nodes")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each")
    parser.add_argument("--isolated", action="store_true", help="each node with its own processes and files")
    parser.add_argument("command", nargs="*", help="what to run with it; after --")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with up(workers=asked.workers, cpus=asked.cpus, isolated=asked.isolated) as cluster:
            if asked.command:
                return subprocess.run(asked.command, env=os.environ | cluster.environment).returncode
            for name, value in cluster.environment.items():
                print(f"export {name}={shlex.quote(value)}")
            print(f"# Ray {cluster.dashboard}   MLflow {cluster.tracking}   Prometheus {cluster.prometheus}")
            print("# until ctrl-c", flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(_main())
