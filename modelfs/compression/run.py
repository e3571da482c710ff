"""A run of `modelfs compress`: a model's files become others of the same format whose weights were transformed.

Rule: a file stands under its own name only when it is whole; until then it lies in the run's hidden directory, whose
journal lets the next run go on. Nothing here holds a tensor: tasks do the work, in a pool's processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from modelfs.compression.dask_pool import cluster_error
from modelfs.compression.journal import (
    Destination,
    Journal,
    parts_of_result,
    refuse_unfinished,
    report_of_result,
    result_of_report,
)
from modelfs.compression.layout import ModelFile, layout_of
from modelfs.compression.native import join_task, refuse_other_formats
from modelfs.compression.plan import FilePlan, Job, plan_of
from modelfs.compression.pool import Pool
from modelfs.compression.tasks import Copy, Rewrite, Seal, Spool, Spooled, SurveyTensors, Task, disk_error
from modelfs.errors import Conflict
from modelfs.transforms import Recipe, Survey, TensorReport, document_of, nothing_matched, parse_recipe
from modelfs.transforms.report import Totals, totals_of
from modelfs.units import MiB

_EXECUTE_BITS = 0o111
_SURVEY_BYTES = 256 * MiB
"""Of tensors that one survey task reads: its answer is 8 MiB for each rule, however much it has read."""
_AHEAD = 4
"""Tasks submitted for each that can run at once: workers never wait, and a large model's tasks are not all in memory.
"""
_TICK_S = 1.0
_LAST = "last"


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """note: why its tensors could not be read, though its format is known."""

    path: str
    format: str | None
    size_before: int
    size: int
    note: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """recipe: with what the survey found. tensors: with the numbers of their files. resumed_tensors: done before."""

    recipe: Recipe
    files: tuple[FileOutcome, ...]
    tensors: tuple[tuple[int, TensorReport], ...]
    resumed_tensors: int
    elapsed_s: float

    @property
    def totals(self) -> Totals:
        return totals_of(each for _, each in self.tensors)

    def document(self) -> dict[str, object]:
        tensors = [{"file": self.files[number].path} | asdict(each) | {"shape": list(each.shape)}
                   for number, each in self.tensors]
        return {"recipe": document_of(self.recipe), "files": [asdict(file) for file in self.files],
                "tensors": tensors, "totals": asdict(self.totals), "resumed_tensors": self.resumed_tensors,
                "elapsed_s": self.elapsed_s}


def compress(files: Sequence[ModelFile], destination: Destination, recipe: Recipe, pool: Pool, *, source: str,
             advance: Callable[[int], None], tell: Callable[[str], None],
             begun: Callable[[str], None] = lambda _: None) -> Outcome:
    """The files at their destination.

    source: as the user named it. advance: told bytes of the source as they are done. begun: told the run's directory
    once it is there. Raises BadInput where the recipe matches nothing, Conflict, NoSpace and whatever tasks raise; what
    was done stays for the next run.
    """
    started = time.monotonic()
    refuse_unfinished(files, source)
    try:
        plans = [plan_of(number, file, layout_of(file), recipe) for number, file in enumerate(files)]
        if not any(plan.jobs for plan in plans):
            raise nothing_matched(recipe, source, [choice for plan in plans for choice in plan.choices])
        if recipe.native_dtype:
            refuse_other_formats(plans)
        journal = Journal(destination)
        try:
            journal.begin(files, document_of(recipe))
            if journal.began_anew is not None:
                tell(f"begins anew: {journal.began_anew} since the run that did not end")
            begun(str(destination.work))
            outcome = _Run(plans, destination, journal, pool, advance).run(recipe, started)
            journal.end()
        finally:
            journal.close()
    except OSError as error:
        raise disk_error(error, str(destination.root)) from error
    for file in outcome.files:
        if file.note:
            tell(f"{file.path}: its tensors were left alone: {file.note}")
    return outcome


@dataclass(slots=True)
class _Work:
    """One file under way. results: of its tasks, by their keys. open: keys of those that are not done."""

    plan: FilePlan
    results: dict[str, dict[str, Any]]
    open: set[str] = field(default_factory=set)


class _Run:
    def __init__(self, plans: Sequence[FilePlan], destination: Destination, journal: Journal, pool: Pool,
                 advance: Callable[[int], None]) -> None:
        self._plans, self._destination, self._journal, self._pool = plans, destination, journal, pool
        self._advance = advance
        self._recipe: Recipe
        self._waiting: dict[Future[Any], tuple[_Work, str, int]] = {}
        self._outcomes: dict[int, FileOutcome] = {}
        self._reports: dict[int, dict[int, TensorReport]] = {}
        self._resumed = 0

    def run(self, recipe: Recipe, started: float) -> Outcome:
        self._recipe = self._resolved(recipe)
        for plan in self._plans:
            for work, key, task, size in self._begun(plan):
                while len(self._waiting) >= self._pool.width * _AHEAD:
                    self._collect()
                self._waiting[self._pool.submit(task)] = (work, key, size)
        while self._waiting:
            self._collect()
        tensors = [(number, self._reports[number][index]) for number in range(len(self._plans))
                   for index in sorted(self._reports[number])]
        return Outcome(self._recipe, tuple(self._outcomes[number] for number in range(len(self._plans))),
                       tuple(tensors), self._resumed, round(time.monotonic() - started, 3))

    def _resolved(self, recipe: Recipe) -> Recipe:
        if not recipe.needs_survey:
            return recipe
        if self._journal.resolved is None:
            survey = Survey()
            waiting: set[Future[Any]] = set()
            for task in _surveys(self._plans):
                while len(waiting) >= self._pool.width * _AHEAD:
                    waiting = self._merge(survey, waiting)
                waiting.add(self._pool.submit(task))
            while waiting:
                waiting = self._merge(survey, waiting)
            self._journal.note_resolved(document_of(recipe.resolved(survey)))
        return parse_recipe(self._journal.resolved or {}, recipe.name, "the journal")

    def _merge(self, survey: Survey, waiting: set[Future[Any]]) -> set[Future[Any]]:
        done, left = wait(waiting, _TICK_S, FIRST_COMPLETED)
        if not done:
            self._pool.check()
        for future in done:
            survey.merge(_result(future))
        return left

    def _begun(self, plan: FilePlan) -> Iterator[tuple[_Work, str, Task, int]]:
        """The tasks of a file that are not done, after all is ready for them."""
        noted, part = self._journal.noted(plan.number), self._journal.part(plan.number)
        path = self._destination.path_of(plan.file)
        native = _is_native(self._recipe, plan)
        named = noted.named and not part.exists() and path.exists()
        if not named:
            if os.path.lexists(path) and not noted.named:
                raise Conflict("something is there already", where=str(path), why="no run of compress made it",
                               advice="Move it away and run it again: it goes on.")
            if not native and not (part.exists() and part.stat().st_size == plan.file.size):
                noted.results.clear()
                with part.open("wb") as made:
                    made.truncate(plan.file.size)
        work = _Work(plan, dict(noted.results))
        tasks = [] if named else [
            (key, task, size) for key, task, size in self._tasks(plan, native)
            if key not in work.results or (native and not self._journal.spool(plan.number, int(key)).exists())]
        work.open = {key for key, _, _ in tasks}
        if not named:
            self._resumed += sum(str(job.number) not in work.open for job in plan.jobs)
        else:
            self._resumed += len(plan.jobs)
        self._advance(plan.file.size - sum(size for _, _, size in tasks))
        if named:
            self._ended(work, path)
        elif not tasks:
            self._all_done(work)
        for key, task, size in tasks:
            yield work, key, task, size

    def _tasks(self, plan: FilePlan, native: bool) -> Iterator[tuple[str, Task, int]]:
        location, part = plan.file.location, str(self._journal.part(plan.number))
        for job in plan.jobs:
            method = self._method(job)
            yield str(job.number), Spool(location, str(self._journal.spool(plan.number, job.number)), job.tensor,
                                         method) if native else Rewrite(location, part, job.tensor, method), \
                job.tensor.length
        for piece in () if native else plan.copied:
            yield f"copy {piece.offset}", Copy(location, part, piece), piece.length

    def _method(self, job: Job) -> Any:
        """Of the resolved recipe: the choice was made before the survey."""
        return job.choice.method if job.choice.rule is None else self._recipe.rules[job.choice.rule].method

    def _collect(self) -> None:
        done, _ = wait(self._waiting, _TICK_S, FIRST_COMPLETED)
        if not done:
            self._pool.check()
        failed: Exception | None = None
        for future in done:
            try:
                result = _result(future)
            except Exception as error:  # raised once what else is done has been noted
                failed = failed or error
                continue
            self._done(*self._waiting.pop(future), result)
        if failed is not None:
            raise failed

    def _done(self, work: _Work, key: str, size: int, result: object) -> None:
        self._advance(size)
        if key == _LAST:
            self._named(work)
            return
        if isinstance(result, Spooled):
            work.results[key] = result_of_report(result.report, result.parts)
        else:
            work.results[key] = result_of_report(result) if isinstance(result, TensorReport) else {}
        self._journal.note_done(work.plan.number, key, work.results[key])
        work.open.discard(key)
        if not work.open:
            self._all_done(work)

    def _all_done(self, work: _Work) -> None:
        """All tensors: what is left to do before the file gets its name."""
        task = self._last_task(work)
        if task is None:
            self._named(work)
        else:
            self._waiting[self._pool.submit(task)] = (work, _LAST, 0)

    def _last_task(self, work: _Work) -> Task | None:
        plan, part = work.plan, str(self._journal.part(work.plan.number))
        if _is_native(self._recipe, plan):
            return join_task(plan, part, {job.number: str(self._journal.spool(plan.number, job.number))
                                          for job in plan.jobs},
                             {job.number: parts_of_result(work.results[str(job.number)]) for job in plan.jobs},
                             self._recipe)
        starts = [job.tensor.offset for job in plan.jobs]
        members = tuple(member for member in plan.layout.members
                        if any(member.data <= start < member.data + member.size for start in starts))
        return Seal(part, members) if members else None

    def _named(self, work: _Work) -> None:
        """Raises Conflict where the source changed while it was read."""
        file, part = work.plan.file, self._journal.part(work.plan.number)
        found = os.stat(file.location)
        if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
            raise Conflict("changed while it was read", where=file.location, advice="Run it again.")
        path = self._destination.path_of(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(part, 0o644 | file.mode & _EXECUTE_BITS)
        os.utime(part, ns=(file.mtime_ns, file.mtime_ns))
        self._journal.note_named(work.plan.number)
        os.replace(part, path)
        for job in work.plan.jobs:
            self._journal.spool(work.plan.number, job.number).unlink(missing_ok=True)
        self._ended(work, path)

    def _ended(self, work: _Work, path: os.PathLike[str]) -> None:
        plan = work.plan
        self._outcomes[plan.number] = FileOutcome(plan.file.path, plan.layout.format, plan.file.size,
                                                  os.stat(path).st_size, plan.layout.trouble)
        reports = dict(plan.untouched)
        for job in plan.jobs:
            report = report_of_result(work.results[str(job.number)])
            reports[job.number] = report
            for twin in job.twins:
                tensor = plan.layout.tensors[twin]
                # counted once: with no elements of its own it weighs nothing in the totals
                reports[twin] = replace(report, name=tensor.name, shape=tensor.shape, elements=0)
        self._reports[plan.number] = reports


def _is_native(recipe: Recipe, plan: FilePlan) -> bool:
    return recipe.native_dtype and bool(plan.jobs)


def _surveys(plans: Sequence[FilePlan]) -> Iterator[SurveyTensors]:
    batch, size = [], 0
    for plan in plans:
        for job in plan.jobs:
            batch.append((plan.file.location, job.tensor, job.choice))
            size += job.tensor.length
            if size >= _SURVEY_BYTES:
                yield SurveyTensors(tuple(batch))
                batch, size = [], 0
    if batch:
        yield SurveyTensors(tuple(batch))


def _result(future: Future[Any]) -> Any:
    """Raises what the task raised, and Unavailable where a cluster gave it up."""
    try:
        return future.result()
    except (Exception, CancelledError) as error:
        if (told := cluster_error(error)) is not None:
            raise told from error
        raise
