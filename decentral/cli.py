"""The command line. Every command imports what it needs when it runs, so that --help costs nothing.

Exit status: 0 success, 2 bad input (one message, nothing written), 1 a run that failed.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
import warnings
from collections.abc import Sequence

from decentral.errors import DecentralError, InvalidInput, RunFailed, suggest

# NumPy's BLAS beside XLA's own threads: on few cores they get in each other's way (a 65 x 65 eigvalsh then takes a second).
# Read when NumPy is first imported, which the commands below do.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

LISTED = (
    "algorithms",
    "topologies",
    "networks",
    "problems",
    "protocols",
    "hardware",
    "experiments",
    "projections",
)


def run(options: argparse.Namespace) -> None:
    """Run a spec, print the table of results and where the plot is."""
    from decentral.experiment.run import run as run_spec
    from decentral.experiment.spec import load_spec

    spec = load_spec(options.spec, overrides=options.set, seeds=options.seeds, smoke=options.smoke)
    _allow_float64(spec.dtype == "float64")
    finished = run_spec(
        spec,
        out=options.out,
        overwrite=options.overwrite,
        progress=sys.stderr.isatty(),
        command_line=options.command_line,
    )
    _report(finished)


def resume(options: argparse.Namespace) -> None:
    """Take up a run that was cut off."""
    from decentral.experiment.folder import read_json, require_run
    from decentral.experiment.run import resume as resume_run

    manifest = read_json(require_run(options.dir) / "manifest.json", "manifest")
    _allow_float64(manifest.get("flags", {}).get("x64", False))
    _report(resume_run(options.dir, progress=sys.stderr.isatty()))


def compare(options: argparse.Namespace) -> None:
    """Print a table of finished runs."""
    from decentral.experiment.compare import compare as table

    print(table(options.dir, options.format, hours=options.hours), end="")


def topology(options: argparse.Namespace) -> None:
    """Print the constants of a graph."""
    import json

    from decentral.experiment.overrides import packaged, parse_override, read_tables
    from decentral.topology import DIRECTED, TOPOLOGIES, named, named_directed

    graphs = TOPOLOGIES | DIRECTED
    if options.name in graphs:
        given = dict(map(parse_override, options.set))
        arguments = {key.removeprefix("topology."): value for key, value in given.items()}
        arguments["kind"] = options.name
    elif os.path.exists(options.name) or options.name in packaged("experiments"):
        tables = read_tables(options.name, overrides=options.set)
        arguments = tables.get("topology")
        if not isinstance(arguments, dict) or "kind" not in arguments:
            raise InvalidInput("topology", options.name, "a spec with a table [topology] and its kind")
        graph = graphs.get(str(arguments["kind"]))
        if graph and "seed" in inspect.signature(graph).parameters:
            arguments = {"seed": tables.get("seed", 0)} | arguments
    else:
        known = [*graphs, *packaged("experiments")]
        raise InvalidInput("topology", options.name, "a named graph, or a spec", suggest(options.name, known))
    if options.n is not None:
        arguments["n"] = options.n
    if options.rates is not None:
        arguments["rates"] = options.rates
    if "n" not in arguments:
        raise InvalidInput("topology.n", "nothing", "a whole number, at least 2", "How many workers? --n 16")
    if "rate" in arguments:
        raise InvalidInput("--set rate", arguments["rate"], "arguments of the graph", "Use --rate.")
    if arguments["kind"] in DIRECTED:  # messages, not exchanges: no rates
        summary = named_directed(**arguments).summary()
    else:
        chosen = named(**arguments, rate=options.rate)
        summary = chosen.summary()
        if arguments.get("rates", "uniform") != "uniform":
            arguments["rates"] = "uniform"
            uniform = named(**arguments, rate=options.rate)
            summary |= {"uniform_chi_1": uniform.chi_1, "uniform_chi_2": uniform.chi_2}
            for key, graph in (("", chosen), ("uniform_", uniform)):
                summary[f"{key}sqrt_chi_1_chi_2"] = math.sqrt(graph.chi_1 * graph.chi_2)
    if options.json:
        print(json.dumps(summary, indent=2))
        return
    width = max(map(len, summary))
    for key, value in summary.items():
        print(f"{key:<{width}}  {value:.6g}" if isinstance(value, float) else f"{key:<{width}}  {value}")


def trace(options: argparse.Namespace) -> None:
    """Print what happened in a run, or write it for Perfetto, or draw it."""
    from pathlib import Path

    from decentral.analysis.gantt import plot_gantt
    from decentral.analysis.timeline import trace_table, write_perfetto
    from decentral.engine.trace import Trace
    from decentral.experiment.folder import require_run
    from decentral.protocol import Recorded

    if Path(options.dir).is_file():
        traces = {Path(options.dir).stem.removeprefix("trace_"): Recorded(options.dir).trace}
    else:
        folder = require_run(options.dir)
        files = sorted(folder.glob("trace_*.npz"))
        if not files:
            raise InvalidInput(
                "DIR", str(folder), "a run that kept its trace", "This one ran with record.trace = false."
            )
        traces = {path.stem.removeprefix("trace_"): Trace.load(path) for path in files}
    if not options.perfetto and not options.gantt:
        print(trace_table(traces), end="")
    option, target = "--perfetto", options.perfetto
    try:
        if options.perfetto:
            write_perfetto(traces, options.perfetto)
            print(f"{options.perfetto}: open it at ui.perfetto.dev or chrome://tracing")
        option, target = "--gantt", options.gantt
        if options.gantt:
            if len(traces) > 1:
                advice = f"Name one of its files: {', '.join(f'trace_{name}.npz' for name in traces)}"
                raise InvalidInput("--gantt", f"{len(traces)} traces", "one trace to draw", advice)
            print(plot_gantt(next(iter(traces.values())), options.gantt))
    except OSError as error:
        raise InvalidInput(option, target, "a file that can be written", f"{error}.") from None


def project(options: argparse.Namespace) -> None:
    """Print what a model would cost on a cluster, and where its time goes."""
    import json

    from decentral.experiment import projection_report as room
    from decentral.experiment.projections import load_plan

    for option, target in (("--plot", options.plot), ("--pareto", options.pareto)):
        if target and os.path.splitext(target)[1].lower() not in (".png", ".pdf", ".svg"):
            raise InvalidInput(option, target, "a file name that ends in .png, .pdf or .svg")
    if options.pareto and not options.search:
        raise InvalidInput("--pareto", options.pareto, "with --search")
    plan = load_plan(options.spec, overrides=options.set)
    done = room.carry_out(plan)
    found = None
    if options.search:
        from decentral.cost.search import search

        found = search(
            plan.model,
            plan.layouts[0],
            plan.cluster,
            plan.algorithms[0],
            plan.conditions,
            devices=plan.devices,
        )
    if options.json:
        numbers = room.data(done)
        if found is not None:
            numbers["search"] = room.search_data(found)
        if options.sensitivity:
            numbers["sensitivity"] = room.sensitivity_data(done.projections)
        print(json.dumps(numbers, indent=2, allow_nan=False))
    else:
        print(room.text(done), end="")
        if options.sensitivity:
            print("\n" + room.sensitivity_text(done.projections), end="")
        if found is not None:
            print("\n" + room.search_text(plan, found), end="")
    if options.plot or options.pareto:
        from decentral.analysis.cost_plots import breakdown_figure, pareto_figure
        from decentral.analysis.plots import save_figure

        parts = {one.algorithm.label: one.parts for one in done.projections}
        for target, figure in (
            (options.plot, options.plot and breakdown_figure(plan.name, parts, room.WORDS)),
            (options.pareto, options.pareto and pareto_figure(plan.name, found or [])),
        ):
            if not target:
                continue
            try:
                save_figure(figure, target)
            except OSError as error:
                allowed = "a file that can be written"
                raise InvalidInput("--plot or --pareto", target, allowed, str(error)) from None
            print(target, file=sys.stderr if options.json else sys.stdout)


def figures(options: argparse.Namespace) -> int:
    """Run the experiments that are missing, draw all figures and write the table of claims."""
    from pathlib import Path

    from decentral.experiment.figures import RUNS, make_figures

    if options.jobs is not None and options.jobs < 1:
        raise InvalidInput("--jobs", options.jobs, "an integer >= 1")
    runs = Path(options.runs) if options.runs else RUNS
    out = Path(options.out) if options.out else None
    failed = make_figures(paper=options.paper, smoke=options.smoke, runs=runs, out=out, jobs=options.jobs)
    return 1 if failed else 0


def list_names(options: argparse.Namespace) -> None:
    """Print what there is, a line each."""
    rooms = [options.what] if options.what else LISTED
    for room in rooms:
        if len(rooms) > 1:
            print(f"{room}:")
        entries = _entries(room)
        width = max(map(len, entries), default=0)
        for name, line in entries.items():
            print(f"  {name:<{width}}  {line}")


def doctor(options: argparse.Namespace) -> int:
    """Check versions, devices and known faults."""
    from decentral.experiment.doctor import examine

    report, healthy = examine()
    print(report, end="")
    return 0 if healthy else 1


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    from decentral import __version__

    top = argparse.ArgumentParser(
        prog="decentral",
        description="Decentralized, asynchronous optimization: how well does it learn, and how fast would it be.",
        epilog="First steps: decentral run quickstart --smoke",
    )
    top.add_argument("--version", action="version", version=f"decentral {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(function, name: str, **words) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=words["help"], description=words.get("description", words["help"])
        )
        added.set_defaults(function=function)
        return added

    def overrides(added, example: str) -> None:
        added.add_argument(
            "--set",
            metavar="KEY=VALUE",
            nargs="+",
            action="extend",
            default=[],
            help=f"dotted keys and TOML values, e.g. {example}",
        )

    one = command(run, "run", help="run a spec and write a run folder")
    one.add_argument(
        "spec", metavar="SPEC", help="a TOML file, or a packaged experiment (decentral list experiments)"
    )
    overrides(one, "topology.n=64 algorithm.a2cid2.eta=0.1")
    one.add_argument("--out", metavar="DIR", help="the run folder (default: runs/NAME-001 and counting)")
    one.add_argument("--seeds", metavar="N", type=int, help="number of seeds")
    one.add_argument("--smoke", action="store_true", help="the spec's small version: seconds")
    one.add_argument("--overwrite", action="store_true", help="replace the run folder if it exists")

    one = command(resume, "resume", help="take up a run that was cut off, from its last checkpoint")
    one.add_argument("dir", metavar="DIR", help="the run folder")

    one = command(compare, "compare", help="set finished runs side by side")
    one.add_argument("dir", metavar="DIR", nargs="+", help="run folders")
    one.add_argument(
        "--format", choices=("text", "latex", "csv", "json"), default="text", help="of the table"
    )
    one.add_argument(
        "--hours", action="store_true", help="add the hours of wall time (CSV and JSON have them)"
    )

    one = command(topology, "topology", help="constants of a graph: chi_1, chi_2, spectral gap, ...")
    one.add_argument(
        "name", metavar="NAME|SPEC", help="a named graph (decentral list topologies), or a spec file"
    )
    one.add_argument("--n", metavar="N", type=int, help="number of workers")
    one.add_argument("--rate", metavar="R", type=float, help="exchanges per worker and unit time (default 1)")
    one.add_argument(
        "--rates", metavar="WORD", help="how edges share it: uniform, degree, or optimal for chi_1 chi_2"
    )
    overrides(one, "degree=6 (with a spec: topology.degree=6)")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = command(trace, "trace", help="what happened in a run: counts, rates, utilisation, staleness")
    one.add_argument("dir", metavar="DIR|FILE", help="the run folder, or a trace file (npz, CSV)")
    one.add_argument(
        "--gantt", metavar="FILE", help="draw who computed and communicated when (PNG, PDF, SVG)"
    )
    one.add_argument(
        "--perfetto", metavar="FILE", help="write the events as Chrome trace JSON for ui.perfetto.dev"
    )

    one = command(
        project,
        "project",
        help="what a model would cost on a real cluster: time, MFU, memory, energy, money",
        description="The cost model: step time, tokens/s, MFU and HFU, memory, bytes, energy, where the time goes, how sure.",
    )
    one.add_argument(
        "spec", metavar="SPEC", help="a TOML file, or a packaged projection (decentral list projections)"
    )
    overrides(one, "cluster.devices=512 parallelism.dp=64")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--search", action="store_true", help="try all legal layouts; print those nothing beats")
    one.add_argument(
        "--sensitivity", action="store_true", help="print d log time / d log(each number of the hardware)"
    )
    one.add_argument("--plot", metavar="FILE", help="draw where the time goes (PNG, PDF, SVG)")
    one.add_argument("--pareto", metavar="FILE", help="with --search: draw throughput, memory and cost")

    one = command(list_names, "list", help="names a spec can use")
    one.add_argument("what", nargs="?", choices=LISTED, help="all of them by default")

    one = command(
        figures,
        "figures",
        help="run what is missing, draw the papers' figures and check their claims (needs a checkout)",
    )
    one.add_argument("--paper", metavar="P", help="only scripts whose name begins so: dadao, a2cid2, ...")
    one.add_argument("--runs", metavar="DIR", help="the run folders (default: runs/figures)")
    one.add_argument("--out", metavar="DIR", help="where the figures go (default: beside the run folders)")
    one.add_argument("--jobs", metavar="N", type=int, help="processes (default: one per core)")
    one.add_argument(
        "--smoke", action="store_true", help="the small versions: minutes, and no claim is judged"
    )

    command(doctor, "doctor", help="versions, devices, known faults")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    options.command_line = ["decentral", *arguments]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_once()
            status = options.function(options) or 0
        sys.stdout.flush()  # here, where a reader that has gone (head, less) is no error
        return status
    except RunFailed as error:
        print(f"decentral: the run failed\n{error}", file=sys.stderr)
        return 1
    except DecentralError as error:
        print(f"decentral: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("decentral: interrupted", file=sys.stderr)
        return 1


def _show_once():
    """A warning is for the person at the terminal: what, once, and not where in the code."""
    shown = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f"decentral: warning: {message}", file=sys.stderr)

    return show


def _allow_float64(wanted: bool) -> None:
    """float64 is switched on for a run that asks for it, unless the environment says no."""
    import jax

    if wanted and "JAX_ENABLE_X64" not in os.environ:
        jax.config.update("jax_enable_x64", True)


def _report(finished) -> None:
    from decentral.experiment.compare import compare

    print(compare([finished.folder]), end="")
    print(f"\nrun folder  {finished.folder}\nplot        {finished.folder / 'overview.png'}")
    if (finished.folder / "tuning.png").exists():
        print(f"tuning      {finished.folder / 'tuning.png'} (the values chosen are in spec.toml)")
    charts = sorted(path.name for path in finished.folder.glob("gantt_*.png"))
    if charts:
        print(
            f"timelines   {finished.folder / 'gantt_*.png'} ({len(charts)}: who computed and communicated when)"
        )


def _entries(room: str) -> dict[str, str]:
    """Name -> first line of what it says of itself."""
    if room in ("experiments", "projections"):
        import tomllib

        from decentral.experiment.overrides import packaged

        lines = {}
        for name, path in packaged(room).items():
            text = path.read_text()
            first = text.splitlines()[0] if text else ""
            lines[name] = (
                first.removeprefix("#").strip()
                if first.startswith("#")
                else tomllib.loads(text).get("name", "")
            )
        return lines
    if room == "networks":
        from decentral.topology import load_network, network_names

        return {name: load_network(path).description for name, path in network_names().items()}
    if room == "hardware":
        from decentral.hardware import DEVICES

        return {name: f"{d.vendor}, {d.memory_bytes / 1e9:.0f} GB ({d.tag})" for name, d in DEVICES.items()}
    if room == "topologies":
        from decentral.topology import DIRECTED, TOPOLOGIES

        registry = TOPOLOGIES | DIRECTED
    elif room == "protocols":
        from decentral.protocol import PROTOCOLS as registry
    elif room == "problems":
        from decentral.problem import PROBLEMS as registry
    else:
        from decentral.algorithm import ALGORITHMS as registry
    return {name: (entry.__doc__ or "").strip().splitlines()[0] for name, entry in registry.items()}


if __name__ == "__main__":
    sys.exit(main())
