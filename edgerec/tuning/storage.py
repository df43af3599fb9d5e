"""Where a study is kept, and Optuna's parts that work on it."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgerec.errors import EdgerecError, RecipeError, StudyError, unknown
from edgerec.train.backend import cause
from edgerec.tuning.plan import PRUNERS, refuse_other
from edgerec.utils.optional import require
from edgerec.utils.secrets import read_secret
from edgerec.utils.urls import redacted

log = logging.getLogger(__name__)

DATABASE = "study.db"
# A trial whose process has been silent for so many heartbeats was killed; it is tried again, once.
HEARTBEAT_S, SILENT = 10, 6
_FIXED = "edgerec"


class Storage:
    """A database with studies: a file in the study's folder, or PostgreSQL that many machines reach."""

    def __init__(self, url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> None:
        """Connect; raises :class:`StudyError` when that fails."""
        optuna, engine = require("optuna"), require("sqlalchemy.engine")
        logging.getLogger("optuna").setLevel(logging.ERROR)  # it tells in many lines what is told here in one
        if url:
            self._url, self.where = _postgresql(url)
            options: dict[str, Any] = {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True}
        else:
            self._url = engine.URL.create("sqlite", database=str(folder / DATABASE))
            self.where = str(folder / DATABASE)
            options = {"connect_args": {"timeout": 60}}  # for whoever else is writing
        with self.explained(), _quiet(optuna):
            self._storage = _connected(
                self._url.render_as_string(hide_password=False),
                engine_kwargs=options,
                heartbeat_interval=heartbeat_s,
                grace_period=SILENT * heartbeat_s,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1),
            )

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def study(self, name: str, objectives: tuple[str, ...], fixed: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
        """Optuna's study of that name, made if it is not there.

        Args:
            name: of the study.
            objectives: what its trials are judged by.
            fixed: what all its trials share, as dotted keys.
            parts: ``sampler`` and ``pruner``.

        Raises:
            StudyError: a study of that name that was made for something else; the message names the first difference.
        """
        optuna = require("optuna")
        directions = ["maximize" if objective == "accuracy" else "minimize" for objective in objectives]
        with self.explained():
            study = optuna.create_study(
                storage=self._storage, study_name=name, directions=directions, load_if_exists=True, **parts
            )
            if _FIXED not in study.user_attrs:
                if study.get_trials(deepcopy=False) or len(study.directions) != len(directions):
                    raise StudyError(f"study {name!r} in {self.where} was not made by edgerec: choose another --study")
                study.set_user_attr(_FIXED, dict(fixed))
            # Read back: another process may have made it at the same time.
            refuse_other(study.user_attrs[_FIXED], fixed, f"study {name!r} in {self.where}")
        return study

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What a database can say against us, as :class:`StudyError`."""
        optuna, exc = require("optuna"), require("sqlalchemy.exc")
        try:
            yield
        except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            origin = error.__cause__ if isinstance(error.__cause__, exc.SQLAlchemyError) else error
            reason = cause(getattr(origin, "orig", None) or origin)
            raise StudyError(f"{self.where} cannot be used as the study's database: {reason}") from None


def fail_stale(study: Any) -> None:
    """Mark the trials of killed processes as failed, and put them back to be tried again."""
    optuna = require("optuna")
    with _quiet(optuna):
        optuna.storages.fail_stale_trials(study)


def make_sampler(seed: int) -> Any:
    """TPE that draws each trial's values from ``seed`` and the trial's number.

    So processes that share a study never draw the same, and one process alone draws the same again, stopped and
    resumed or not.
    """
    tpe = require("optuna").samplers.TPESampler

    class Repeatable(require("optuna").samplers.BaseSampler):  # type: ignore[misc]
        def before_trial(self, study: Any, trial: Any) -> None:
            digest = hashlib.sha256(f"{seed} {trial.number}".encode()).digest()
            self._tpe = tpe(seed=int.from_bytes(digest[:4]))
            self._tpe.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._tpe.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._tpe.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self._tpe.sample_independent(study, trial, name, distribution)

    return Repeatable()


def make_pruner(name: str, epochs: int) -> Any:
    """What stops trials that lag behind: a name of :data:`PRUNERS`; raises :class:`RecipeError` for another."""
    pruners = require("optuna").pruners
    match name:
        case "median":  # below the median of five others at the same epoch, after a quarter of the epochs
            return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 4)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=epochs)
        case "none":
            return pruners.NopPruner()
    raise RecipeError(unknown("pruner", name, PRUNERS))


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without its warnings that heartbeats are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _postgresql(url: str) -> tuple[Any, str]:
    """Return the address as an SQLAlchemy URL, and as a string without secrets for display."""
    engine = require("sqlalchemy.engine")
    url = read_secret(url)
    try:
        made = engine.make_url(url)
        kind = made.drivername.partition("+")[0]
    except (require("sqlalchemy.exc").ArgumentError, ValueError):
        kind = ""
    if kind not in ("postgresql", "postgres"):
        # The text is not repeated: it may hold a password.
        raise StudyError("--storage is no address of a PostgreSQL database, expected postgresql://USER@HOST/DATABASE")
    require("psycopg")
    made = made.set(drivername="postgresql+psycopg")
    return made, redacted(made.set(drivername="postgresql").render_as_string(hide_password=False))


def _connected(url: str, **options: Any) -> Any:
    """Optuna's storage; where two processes make the tables at the same time, the second one tries again."""
    optuna, exc = require("optuna"), require("sqlalchemy.exc")

    class Patient(require("optuna").storages.RDBStorage):  # type: ignore[misc]
        def record_heartbeat(self, trial_id: int) -> None:
            try:
                super().record_heartbeat(trial_id)
            except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                log.warning("the study's database did not take a sign of life: %s", cause(error))

    for attempt in range(5):
        try:
            return Patient(url, **options)
        except (exc.ProgrammingError, exc.IntegrityError, exc.OperationalError) as error:
            if attempt == 4 or not ("already exists" in str(error) or "duplicate key" in str(error)):
                raise
            time.sleep(0.2 * (attempt + 1))
        except RuntimeError as error:
            raise StudyError(f"{cause(error)}: see Optuna's documentation for optuna storage upgrade") from None
    raise EdgerecError("unreachable")
