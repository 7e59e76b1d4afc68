"""An MLflow database that is there at once: its migrations take seconds, and run once for all tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines import tracking


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    code = f"import mlflow; mlflow.MlflowClient({uri!r}).search_experiments()"
    subprocess.run([sys.executable, "-c", code], env=tracking.environment(), cwd=folder, check=True)
    return folder / "mlflow.db"


@pytest.fixture
def mlflow_store(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A store whose registry is ready and empty."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    (tmp_path / "store").mkdir()
    shutil.copy(mlflow_database, tmp_path / "store" / "mlflow.db")
    return Storage.at(tmp_path / "store")
