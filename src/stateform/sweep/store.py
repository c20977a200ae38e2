"""The store: one SQLite file that holds the runs of sweeps and what came out of them.

Any SQLite reads it; format 1 has two tables (and those of Optuna, where a sweep searches):

    meta(name, value)      program = "stateform", format = "1", created = a time in UTC
    runs(                  one row for each experiment of a sweep; (sweep, key) is unique
        id                 in the order in which they were planned
        sweep              the sweep's name
        key                Experiment.key: the same for the same experiment, whatever the label
        label              what tables and figures call it
        settings           JSON: what was varied, by dotted names
        experiment         JSON: Experiment.to_dict(), complete
        status             waiting, running, done or failed
        worker             host:pid:... of the process that has claimed it while it is running
        heartbeat          Unix time of the last sign of life of that process
        attempts           how often it was begun
        crashes            how often the process that computed it died
        started, finished  times in UTC: of the last beginning, of the outcome
        outcome            JSON: Outcome.to_dict(), of a run that is done
        error              why it failed
    )

Every change is one transaction. A run that is done is never changed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import StateformError, require
from ..files import make_folder
from .rows import Run, as_json, fault_of

FORMAT = 1
"""Version of the tables."""
SILENT = 60.0
"""Seconds without a heartbeat after which a run is free again."""
CRASHES = 5
"""Deaths of its process after which a run has failed."""

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, sweep TEXT NOT NULL, key TEXT NOT NULL, label TEXT NOT NULL, settings TEXT NOT NULL,
    experiment TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'running', 'done', 'failed')),
    worker TEXT, heartbeat REAL, attempts INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
    started TEXT, finished TEXT, outcome TEXT, error TEXT,
    UNIQUE (sweep, key), CHECK (status <> 'done' OR outcome IS NOT NULL)
);
CREATE TRIGGER done_stays BEFORE UPDATE OF status, outcome ON runs WHEN OLD.status = 'done'
BEGIN SELECT RAISE(ABORT, 'this run is done already'); END;
"""
_COLUMNS = (
    "id, sweep, key, label, settings, experiment, status, worker, attempts, crashes, started, finished, outcome, error"
)


class Store:
    """A store's file. One Store is for one thread; any number of processes may have the file open.

    Args:
        path: the file.
        create: make it, and its folder, if there is none.
        reading: nothing will be changed, so the file may be on a disk that is read-only.

    Raises:
        StateformError: no such file, one that cannot be read or written, one that is damaged, of another program or
            of another format. It is left as it is.
    """

    def __init__(self, path: str | Path, *, create: bool = False, reading: bool = False) -> None:
        self.path = Path(path)
        self.copied: tempfile.TemporaryDirectory[str] | None = None
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        require(not os.path.isdir(self.path), f"{self.path} is a folder; expected the file of a store in it")
        if create:
            make_folder(self.path.parent)
        else:
            require(os.path.exists(self.path), f"there is no store {self.path}; `stateform sweep` makes one")
        self.connection = self._connect(self.path, "rwc" if create else "rw")
        try:
            with self._clear():
                try:
                    self._open(create)
                except sqlite3.OperationalError as error:
                    if not reading or _code(error) not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                        raise
                    self.connection.close()
                    self.connection = self._unwritable()
                    self._open(False)
        except BaseException:
            self.close()
            raise

    def _unwritable(self) -> sqlite3.Connection:
        """Open the file on a read-only disk, where SQLite must not write its log beside it."""
        log = self.path.with_name(f"{self.path.name}-wal")
        if not log.is_file() or not log.stat().st_size:
            return self._connect(self.path, "ro&immutable=1")
        self.copied = tempfile.TemporaryDirectory()  # the last changes are in the log alone
        for file in (self.path, log):
            shutil.copyfile(file, Path(self.copied.name) / file.name)
        return self._connect(Path(self.copied.name) / self.path.name, "rw")

    def _connect(self, path: Path, mode: str) -> sqlite3.Connection:
        with self._clear():
            where = f"{path.absolute().as_uri()}?mode={mode}"
            return sqlite3.connect(where, uri=True, timeout=60, isolation_level=None)

    def _open(self, create: bool) -> None:
        self.connection.execute("PRAGMA synchronous = FULL")  # by default, some builds sync a commit with the next one
        tables = [name for (name,) in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if not tables and create:
            self._make()
            tables = ["meta", "runs"]
        meta: dict[str, str] = {}
        if {"meta", "runs"} <= set(tables):
            # Another program may have tables of these names with other columns.
            with contextlib.suppress(sqlite3.OperationalError):
                meta = dict(self.connection.execute("SELECT name, value FROM meta"))
        found = f"with the tables {', '.join(sorted(tables)[:5])}" if tables else "that is empty"
        require(meta.get("program") == "stateform",
                f"{self.path} is a database {found}, and no store of sweeps; name another file")  # fmt: skip
        require(meta.get("format") == str(FORMAT),
                f"{self.path} is a store of format {meta.get('format')}; this version of stateform reads {FORMAT}: use "
                "the version that wrote it, or another file")  # fmt: skip
        (sound,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        require(sound == "ok", f"{self.path} is damaged: {sound}; restore it from a copy, or name another file")
        self.created = meta.get("created", "")

    def _make(self) -> None:
        self.connection.execute("PRAGMA journal_mode = WAL")
        with self._transaction():
            if self.connection.execute("SELECT 1 FROM sqlite_master").fetchone():  # another process was faster
                return
            for statement in _statements(_TABLES):
                self.connection.execute(statement)
            meta = {"program": "stateform", "format": str(FORMAT), "created": _now()}
            self.connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        if self.copied is not None:
            self.copied.cleanup()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # -- changes ---------------------------------------------------------------------------------------------------

    def add(self, sweep: str, runs: Iterable[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Plan runs, each a key, a label, what was varied and the experiment. All are added, or none.

        A run that exists already keeps its status and outcome, and takes the new label.
        """
        rows = [
            (sweep, key, label, as_json(settings), as_json(experiment)) for key, label, settings, experiment in runs
        ]
        with self._clear(), self._transaction():
            self.connection.executemany(
                "INSERT INTO runs (sweep, key, label, settings, experiment) VALUES (?, ?, ?, ?, ?) ON CONFLICT "
                "(sweep, key) DO UPDATE SET label = excluded.label, settings = excluded.settings", rows,
            )  # fmt: skip

    def claim(self, sweep: str, keys: Iterable[str]) -> Run | None:
        """Claim one of these runs that waits, for this process; None if none waits.

        Runs that crashed come last. An experiment that runs now in another sweep of the store is left for later.
        """
        with self._clear(), self._transaction():
            found = self.connection.execute(
                "SELECT id FROM runs WHERE sweep = ? AND status = 'waiting' AND "
                "key IN (SELECT value FROM json_each(?)) AND "
                "key NOT IN (SELECT key FROM runs WHERE status = 'running') ORDER BY crashes, id LIMIT 1",
                (sweep, json.dumps(list(keys))),
            ).fetchone()
            if found is None:
                return None
            self.connection.execute(
                "UPDATE runs SET status = 'running', worker = ?, heartbeat = ?, attempts = attempts + 1, started = ?, "
                "error = NULL WHERE id = ?", (self.worker, time.time(), _now(), *found),
            )  # fmt: skip
            return self._rows("id = ?", found)[0]

    def finish(self, run: Run, outcome: Mapping[str, Any]) -> bool:
        """Keep the outcome; False if the run is no longer this process's own (then nothing changes)."""
        return self._end(run, "status = 'done', outcome = ?", as_json(outcome))

    def fail(self, run: Run, error: str) -> bool:
        """Say why there is no outcome; False if the run is no longer this process's own."""
        return self._end(run, "status = 'failed', error = ?", error)

    def _end(self, run: Run, change: str, value: str) -> bool:
        with self._clear(), self._transaction():
            done = self.connection.execute(
                f"UPDATE runs SET {change}, finished = ?, worker = NULL WHERE id = ? AND status = 'running' AND "
                "worker = ?", (value, _now(), run.id, self.worker),
            )  # fmt: skip
            return done.rowcount == 1

    def record_crash(self, run: Run, how: str) -> bool:
        """Record that the run's process died: the run waits again or, after `CRASHES` deaths, has failed.

        Returns:
            True if it will be tried again.
        """
        with self._clear(), self._transaction():
            self.connection.execute(
                "UPDATE runs SET crashes = crashes + 1, worker = NULL, error = ?, status = iif(crashes + 1 < ?, "
                "'waiting', 'failed'), finished = iif(crashes + 1 < ?, NULL, ?) WHERE id = ? AND status = 'running' "
                "AND worker = ?", (how, CRASHES, CRASHES, _now(), run.id, self.worker),
            )  # fmt: skip
            return self._rows("id = ?", (run.id,))[0].status == "waiting"

    def release(self) -> None:
        """Put back the runs that this process has begun and not ended."""
        with self._clear(), self._transaction():
            self.connection.execute("UPDATE runs SET status = 'waiting', worker = NULL WHERE status = 'running' AND "
                                    "worker = ?", (self.worker,))  # fmt: skip

    def recover(self) -> int:
        """Put back the runs of processes that are gone: killed on this machine, or silent. Returns their number."""
        with self._clear(), self._transaction():
            rows = self.connection.execute("SELECT id, worker, heartbeat FROM runs WHERE status = 'running'").fetchall()
            gone = [(id,) for id, worker, heartbeat in rows if worker != self.worker and not _lives(worker, heartbeat)]
            self.connection.executemany("UPDATE runs SET status = 'waiting', worker = NULL WHERE id = ?", gone)
            return len(gone)

    def retry(self, sweep: str, keys: Iterable[str]) -> int:
        """Put back those of these runs that failed. Returns their number."""
        with self._clear(), self._transaction():
            return self.connection.execute(
                "UPDATE runs SET status = 'waiting', crashes = 0, finished = NULL WHERE sweep = ? AND "
                "status = 'failed' AND key IN (SELECT value FROM json_each(?))", (sweep, json.dumps(list(keys))),
            ).rowcount  # fmt: skip

    @contextlib.contextmanager
    def beating(self, every: float = 5.0) -> Iterator[None]:
        """Write a heartbeat, from a thread, every `every` seconds as long as the block runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(every):
                # One missed beat does no harm: a run is free only after `SILENT` seconds without any.
                with contextlib.suppress(sqlite3.Error):
                    connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
                    with contextlib.closing(connection):
                        connection.execute("UPDATE runs SET heartbeat = ? WHERE worker = ?", (time.time(), self.worker))

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # -- reading ---------------------------------------------------------------------------------------------------

    def runs(self, sweep: str | None = None, keys: Iterable[str] | None = None) -> list[Run]:
        """Read the runs of a sweep, or of all; only those with these keys if they are given."""
        where, values = ["1"], []
        if sweep is not None:
            where.append("sweep = ?")
            values.append(sweep)
        if keys is not None:
            where.append("key IN (SELECT value FROM json_each(?))")
            values.append(json.dumps(list(keys)))
        with self._clear():
            return self._rows(" AND ".join(where), values)

    def counts(self, sweep: str, keys: Iterable[str]) -> dict[str, int]:
        """Count these runs by status."""
        with self._clear():
            return dict(self.connection.execute(
                "SELECT status, count(*) FROM runs WHERE sweep = ? AND key IN (SELECT value FROM json_each(?)) "
                "GROUP BY status", (sweep, json.dumps(list(keys))),
            ).fetchall())  # fmt: skip

    def sweeps(self) -> list[str]:
        """List the names of the sweeps, oldest first."""
        with self._clear():
            rows = self.connection.execute("SELECT sweep FROM runs GROUP BY sweep ORDER BY min(id)").fetchall()
            return [name for (name,) in rows]

    def _rows(self, where: str, values: Iterable[Any]) -> list[Run]:
        rows = self.connection.execute(f"SELECT {_COLUMNS} FROM runs WHERE {where} ORDER BY id", tuple(values))
        found = []
        for row in rows.fetchall():
            made = dict(zip(_COLUMNS.split(", "), row))
            for name in ("settings", "experiment", "outcome"):
                try:
                    made[name] = made[name] and json.loads(made[name])
                except (ValueError, RecursionError) as error:
                    raise StateformError(
                        f"{self.path} is damaged: the {name} of run {made['id']} is no JSON ({error}); restore the "
                        "file from a copy"
                    ) from None
            wrong = fault_of(made)
            require(
                wrong is None, f"{self.path} is damaged: of run {made['id']}, {wrong}; restore the file from a copy"
            )
            found.append(Run(**made))
        return found

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _clear(self) -> Iterator[None]:
        """Turn errors of SQLite into ones that say what to do."""
        try:
            yield
        except sqlite3.Error as error:
            advice = {
                sqlite3.SQLITE_NOTADB: "it is no SQLite database; name another file",
                sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a copy, or name another file",
                sqlite3.SQLITE_FULL: "make room and run the same command again; what is finished is kept",
                sqlite3.SQLITE_READONLY: "name a file where you may write",
                sqlite3.SQLITE_CANTOPEN: "name a file in a folder where you may write",
                sqlite3.SQLITE_BUSY: "another program has locked it for a minute; end that, or wait",
                sqlite3.SQLITE_IOERR: "look after the disk; what is finished is kept",
            }.get(_code(error), "what is finished is kept")
            raise StateformError(f"cannot use the store {self.path}: {error}; {advice}") from None


def _code(error: sqlite3.Error) -> int:
    """Read SQLite's primary number of an error: the low byte, without the details above it."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements (`executescript` would end the transaction)."""
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if text.strip() and sqlite3.complete_statement(text):
            yield text
            text = ""


def _lives(worker: str | None, heartbeat: float | None) -> bool:
    if worker is None or heartbeat is None or time.time() - heartbeat > SILENT:
        return False
    host, _, rest = worker.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or os.name == "nt":  # on Windows, signal 0 would end the process
        return True
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):
        pass
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
