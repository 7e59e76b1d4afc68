"""A whole cluster on this machine, for trying out and for tests; everything in it is gone when it ends.

    python -m infra.local.up                      prints what to export, and waits for ctrl-c
    python -m infra.local.up -- latentmill ...    runs a command with that environment, then stops

A Ray head and workers that ask for a token, an MLflow server on PostgreSQL, an S3 server (moto) and
Prometheus, each on a free port. All but Ray's own ports, which ask for the token, listen to this machine
alone. It needs Debian's packages `postgresql` and `prometheus`.

With `--isolated` (as root) each Ray node is as good as a machine of its own: its own processes, /tmp and
shared memory, and the project's folder is empty on it. Nothing is shared then but the network.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.services import Services, free_port, postgres, program

BUCKET = "latentmill"
OBJECT_STORE = 120 * 2**20
"""Bytes of each Ray node's object store."""
PROJECT = Path(__file__).resolve().parents[2]
UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
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
    if postgres("initdb") is None:
        todo.append("apt-get install postgresql")
    if shutil.which("prometheus") is None:
        todo.append("apt-get install prometheus")
    for module, package in (("moto", "moto[s3]"), ("psycopg2", "psycopg2-binary"), ("s3fs", "s3fs")):
        if importlib.util.find_spec(module) is None:
            todo.append(f"pip install '{package}'")
    if isolated and (os.geteuid() != 0 or not _can_unshare()):
        todo.append("be root, where namespaces are allowed")
    return todo


@dataclass
class Cluster:
    """Running servers. Use `up()`, which stops them."""

    services: Services
    isolated: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    """More environment of Ray's processes."""
    dashboard: str = ""
    """URL of Ray's dashboard, and of its job server."""
    tracking: str = ""
    """URL of the MLflow server."""
    prometheus: str = ""
    workers: list[str] = field(default_factory=list)
    """Names of the Ray worker nodes that run."""
    _made: int = 0
    _gcs: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What a client is to have in its own."""
        return self.services.environment

    @property
    def folder(self) -> Path:
        """All files of all servers, logs (`worker1.log`, `mlflow.log`) among them."""
        return self.services.folder

    def start(self, *, workers: int, cpus: int) -> None:
        """Starts all and waits until all answer.

        Raises:
            RuntimeError: a server ended, or did not answer in time; with the end of its log.
        """
        self.folder.chmod(0o711)  # PostgreSQL runs as another user, and must get to its folder
        self._store()
        database, prometheus = self._database(), free_port()
        self.prometheus = f"http://127.0.0.1:{prometheus}"
        self._record(database)
        self._head()
        self._scrape(prometheus)
        for _ in range(workers):
            self.add_worker(cpus=cpus, wait=False)
        self.services.wait("mlflow", f"{self.tracking}/health")
        self.services.wait("prometheus", f"{self.prometheus}/-/ready")
        self.services.wait("head", lambda: len(self.nodes()) > workers)

    def add_worker(self, *, cpus: int = 1, wait: bool = True) -> str:
        """Starts one more Ray worker node; its name."""
        self._made += 1
        name, before = f"worker{self._made}", len(self.nodes()) if wait else 0
        self._ray(name, ["--address", self._gcs, "--num-cpus", str(cpus)])
        self.workers.append(name)
        if wait:
            self.services.wait(name, lambda: len(self.nodes()) > before)
        return name

    def kill_worker(self, name: str) -> None:
        """Takes a node away as a power cut does: every process of it, at once and unasked."""
        self.workers.remove(name)
        self.services.kill(name)

    def nodes(self) -> list[str]:
        """Ids of the Ray nodes that are alive."""
        asked = urllib.request.Request(f"{self.dashboard}/nodes?view=summary")
        asked.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                listed = json.load(answer)["data"]["summary"]
        except (OSError, ValueError, KeyError):
            return []
        return [n["raylet"]["nodeId"] for n in listed if n["raylet"].get("state") == "ALIVE"]

    def stop(self) -> None:
        """Ends every process that was started, Ray's first, and removes the folder."""
        for name in reversed(list(self.services.processes)):
            if name == "postgres":
                self.services.ask(name)  # killed, it would leave its shared memory behind
            self.services.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _store(self) -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
        self.environment.update(keys | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url})
        self.environment["LATENTMILL_STORE"] = f"s3://{BUCKET}/store"
        self.services.start("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
        self.services.wait("s3", f"{url}/moto-api/")
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=10).close()

    def _database(self) -> str:
        """A PostgreSQL server; the URL of MLflow's database in it."""
        port, password, data = free_port(), secrets.token_hex(16), self.folder / "postgres"
        data.mkdir()
        secret = data.with_suffix(".password")
        secret.write_text(password)
        user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        for path in (data, secret):
            path.chmod(0o700)
            if user:
                shutil.chown(path, user)
        create = [postgres("initdb"), "-D", data, "-U", "mlflow", "-A", "scram-sha-256", "-E", "UTF8"]
        create += ["--locale=C", "--no-sync", f"--pwfile={secret}"]
        made = subprocess.run(list(map(str, create)), user=user, cwd=data, capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr.strip()}")
        secret.unlink()
        serve = [postgres("postgres"), "-D", data, "-p", port, "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"]
        self.services.start("postgres", list(map(str, serve)), user=user, cwd=data)
        login = {"PGPASSWORD": password, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow"}
        command = [str(postgres("createdb")), "mlflow"]
        self.services.wait(
            "postgres",
            lambda: subprocess.run(command, env=os.environ | login, capture_output=True).returncode == 0,
        )
        return f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{port}/mlflow"

    def _record(self, database: str) -> None:
        port = free_port()
        self.tracking = self.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        command = [program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        # the database's password stays out of the list of processes
        own = {
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_S3_ENDPOINT_URL": self.environment["AWS_ENDPOINT_URL"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.services.start("mlflow", command, more=own)

    def _head(self) -> None:
        gcs, dashboard, client = free_port(), free_port(), free_port()
        self._gcs, self.dashboard = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        self.environment.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        self.environment["RAY_API_SERVER_ADDRESS"] = self.dashboard
        if not self.isolated:  # from outside a driver does not find the head's files
            self.environment["RAY_ADDRESS"] = self._gcs
        arguments = ["--head", "--port", str(gcs), "--dashboard-host", "127.0.0.1", "--num-cpus", "0"]
        arguments += ["--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)]
        self._ray("head", arguments)
        self.services.wait("head", lambda: bool(self.nodes()))

    def _ray(self, name: str, arguments: Sequence[str]) -> None:
        """One Ray node, with ports of its own: all nodes have one address."""
        node = self.folder / name
        node.mkdir(mode=0o1777)
        command = [program("ray"), "start", "--block", "--node-ip-address", "127.0.0.1", *arguments]
        command += ["--node-name", name, "--object-store-memory", str(OBJECT_STORE), "--disable-usage-stats"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        for port in ("metrics-export-port", "dashboard-agent-listen-port", "node-manager-port"):
            command += [f"--{port}", str(free_port())]
        own = {"RAY_PROMETHEUS_HOST": self.prometheus, "MLFLOW_DISABLE_TELEMETRY": "true", **self.settings}
        if not self.isolated:
            self.services.start(name, [*command, "--temp-dir", str(node)], more=own)
            return
        own |= {"NODE": str(node), "PYTHON": sys.prefix, "PROJECT": str(PROJECT)}
        own |= {"HOME": "/tmp", "LATENTMILL_CACHE": "/tmp/cache"}
        inside = [*UNSHARE, "sh", "-c", ISOLATE, "node", *command, "--temp-dir", "/tmp/ray"]
        self.services.start(name, inside, more=own, cwd="/")

    def _scrape(self, port: int) -> None:
        # The link to it in Ray's folder holds the path that the head sees, and not every reader does.
        temporary = self.folder / "head" / ("ray" if self.isolated else "")
        session = next(path for path in temporary.glob("session_*") if not path.is_symlink())
        targets = json.dumps(str(session / "prom_metrics_service_discovery.json"))
        config = self.folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 2s}\n"
            "scrape_configs:\n"
            f"  - {{job_name: ray, file_sd_configs: [{{files: [{targets}], refresh_interval: 2s}}]}}\n"
        )
        command = ["prometheus", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"]
        self.services.start("prometheus", [*command, f"--storage.tsdb.path={self.folder / 'prometheus'}"])


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
        RuntimeError: a server did not start.
    """
    if todo := missing(isolated=isolated):
        raise ValueError(f"A local cluster cannot start yet; first: {'; '.join(todo)}.")
    # A short path: Ray's sockets lie in it, and their names have room for 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="mill-", dir="/tmp"))
    cluster = Cluster(Services(folder), isolated=isolated, settings=settings or {})
    try:
        cluster.start(workers=workers, cpus=cpus)
        yield cluster
    finally:
        cluster.stop()


def _can_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode == 0
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
