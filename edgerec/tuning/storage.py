"""Connect to the database of a study, and create Optuna samplers and pruners."""

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
from edgerec.tuning.plan import PRUNERS, refuse_other_settings
from edgerec.utils.optional import require
from edgerec.utils.secret_references import read_secret
from edgerec.utils.url_redaction import redacted

log = logging.getLogger(__name__)

DATABASE = "study.db"
# Interval between the heartbeats of a running trial, in seconds.
HEARTBEAT_S = 10
# Number of missed heartbeats after which a trial is treated as killed.
MAX_MISSED_HEARTBEATS = 6
# Optuna user attribute that stores the settings shared by all trials.
_SETTINGS = "edgerec"


class Storage:
    """Optuna storage in an SQLite file or in a PostgreSQL database.

    Attributes:
        location: path of the file, or URL of the database without secrets.
    """

    def __init__(self, url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> None:
        """Connect to the database.

        Args:
            url: URL of a PostgreSQL database, or an empty string for an SQLite file in ``folder``.
            folder: folder of the study.
            heartbeat_s: interval of the heartbeats of a running trial, in seconds.

        Raises:
            StudyError: the connection fails.
        """
        optuna, engine = require("optuna"), require("sqlalchemy.engine")
        # Optuna's log messages would repeat the log messages of tune().
        logging.getLogger("optuna").setLevel(logging.ERROR)
        if url:
            self._url, self.location = _parse_postgresql_url(url)
            options: dict[str, Any] = {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True}
        else:
            self._url = engine.URL.create("sqlite", database=str(folder / DATABASE))
            self.location = str(folder / DATABASE)
            options = {"connect_args": {"timeout": 60}}  # SQLite waits for other processes to finish writing.
        with self.errors_explained(), _without_experimental_warnings(optuna):
            self._storage = _connect(
                self._url.render_as_string(hide_password=False),
                engine_kwargs=options,
                heartbeat_interval=heartbeat_s,
                grace_period=MAX_MISSED_HEARTBEATS * heartbeat_s,
                heartbeat_stale_trial_callback=_retry_callback(optuna),
            )

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def study(
        self, name: str, objectives: tuple[str, ...], settings: Mapping[str, Any], parts: Mapping[str, Any]
    ) -> Any:
        """Load an Optuna study, or create the study if it does not exist.

        Args:
            name: name of the study.
            objectives: objectives of the study.
            settings: settings that all trials share, a dictionary with dotted keys.
            parts: ``sampler`` and ``pruner`` of the study.

        Raises:
            StudyError: the study exists and has other settings.
        """
        optuna = require("optuna")
        directions = ["maximize" if objective == "accuracy" else "minimize" for objective in objectives]
        with self.errors_explained():
            study = optuna.create_study(
                storage=self._storage, study_name=name, directions=directions, load_if_exists=True, **parts
            )
            if _SETTINGS not in study.user_attrs:
                if study.get_trials(deepcopy=False) or len(study.directions) != len(directions):
                    raise StudyError(
                        f"Study {name!r} in {self.location} was not created by edgerec: choose another --study"
                    )
                study.set_user_attr(_SETTINGS, dict(settings))
            # Another process may have created the study at the same time with other settings.
            refuse_other_settings(study.user_attrs[_SETTINGS], settings, f"study {name!r} in {self.location}")
        return study

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        """Convert database errors to :class:`StudyError`."""
        optuna, exc = require("optuna"), require("sqlalchemy.exc")
        try:
            yield
        except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            origin = error.__cause__ if isinstance(error.__cause__, exc.SQLAlchemyError) else error
            reason = cause(getattr(origin, "orig", None) or origin)
            raise StudyError(f"{self.location} cannot be used as the study's database: {reason}") from None


def fail_stale(study: Any) -> None:
    """Mark trials of killed processes as failed, and enqueue their parameters again."""
    optuna = require("optuna")
    with _without_experimental_warnings(optuna):
        optuna.storages.fail_stale_trials(study)


def fail_running(study: Any) -> None:
    """Mark all running trials as failed, and enqueue their parameters again, without waiting for missed heartbeats.

    Call this function only if no other process uses the study.
    """
    optuna = require("optuna")
    state = optuna.trial.TrialState
    with _without_experimental_warnings(optuna):
        retry = _retry_callback(optuna)
        for trial in study.get_trials(states=(state.RUNNING,)):
            study.tell(trial.number, state=state.FAIL)
            retry(study, trial)


def _retry_callback(optuna: Any) -> Any:
    """Return an Optuna callback that repeats a killed trial once."""
    return optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1)


def make_sampler(seed: int) -> Any:
    """Return a TPE sampler whose random numbers depend only on ``seed`` and the trial number.

    Processes that share a study therefore use different random numbers. If a study is interrupted and resumed, its
    trials have the same parameters as in an uninterrupted study. Optuna's samplers do not guarantee this.
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
    """Create an Optuna pruner by name.

    The median pruner compares a trial with the median of at least five other trials at the same epoch, after the first
    quarter of the epochs.

    Raises:
        RecipeError: if ``name`` is not one of :data:`PRUNERS`.
    """
    pruners = require("optuna").pruners
    match name:
        case "median":
            return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 4)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=epochs)
        case "none":
            return pruners.NopPruner()
    raise RecipeError(unknown("pruner", name, PRUNERS))


@contextmanager
def _without_experimental_warnings(optuna: Any) -> Iterator[None]:
    """Suppress Optuna's warnings that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _parse_postgresql_url(url: str) -> tuple[Any, str]:
    engine = require("sqlalchemy.engine")
    url = read_secret(url)
    try:
        parsed = engine.make_url(url)
        kind = parsed.drivername.partition("+")[0]
    except (require("sqlalchemy.exc").ArgumentError, ValueError):
        kind = ""
    if kind not in ("postgresql", "postgres"):
        # The message does not contain the URL, because the URL may include a password.
        raise StudyError("--storage must be the URL of a PostgreSQL database: postgresql://USER@HOST/DATABASE")
    require("psycopg")
    parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed, redacted(parsed.set(drivername="postgresql").render_as_string(hide_password=False))


def _connect(url: str, **options: Any) -> Any:
    """Connect to the database, and retry if another process creates the tables at the same time."""
    optuna, exc = require("optuna"), require("sqlalchemy.exc")

    class HeartbeatTolerantStorage(require("optuna").storages.RDBStorage):  # type: ignore[misc]
        def record_heartbeat(self, trial_id: int) -> None:
            try:
                super().record_heartbeat(trial_id)
            except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                log.warning("a heartbeat could not be written to the study's database: %s", cause(error))

    for attempt in range(5):
        try:
            return HeartbeatTolerantStorage(url, **options)
        except (exc.ProgrammingError, exc.IntegrityError, exc.OperationalError) as error:
            if attempt == 4 or not ("already exists" in str(error) or "duplicate key" in str(error)):
                raise
            time.sleep(0.2 * (attempt + 1))
        except RuntimeError as error:
            raise StudyError(
                f"The study's database was created by another Optuna version ({cause(error)}): run "
                '"optuna storage upgrade"'
            ) from None
    raise EdgerecError("unreachable")
