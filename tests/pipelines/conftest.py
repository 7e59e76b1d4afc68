"""An MLflow database that is there at once: its migrations take seconds, and run once for all tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines import tracking


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by whichever process of the tests asks first; the others wait for it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    made = folder / "mlflow.db"
    with (folder / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            new = tmp_path_factory.mktemp("mlflow")
            code = f"import mlflow; mlflow.MlflowClient('sqlite:///{new}/mlflow.db').search_experiments()"
            subprocess.run([sys.executable, "-c", code], env=tracking.environment(), cwd=new, check=True)
            (new / "mlflow.db").replace(made)
    return made


@pytest.fixture
def mlflow_store(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A store whose registry is ready and empty."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    (tmp_path / "store").mkdir()
    shutil.copy(mlflow_database, tmp_path / "store" / "mlflow.db")
    return Storage.at(tmp_path / "store")
