"""What Lightning's trainer does with signals and with the processes that it starts is left to us."""

from typing import TYPE_CHECKING

from montessori_pl.processes.peers import Peers

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def share_cores(trainer: "Trainer") -> None:
    """Divide the cores at once among the processes of this machine, as Lightning would when they begin to train.

    Sums differ in their last digits with the number of threads. A run that goes on behind a training would compute the
    rest with more of them than the run that came from it.
    """
    from lightning.fabric.utilities.distributed import _set_num_threads_if_needed

    if trainer.num_devices > 1:
        _set_num_threads_if_needed(trainer.num_devices)


def take_over(trainer: "Trainer", peers: Peers) -> None:
    """Leave to us what a trainer would do: it has no setting for it.

    While it runs, it would take SIGTERM for itself and go on, or wait for ever in a broadcast to processes that do not
    listen; and take SIGUSR1 under Slurm, submit the job again and go on. When a process that it has started ends, it
    would kill this one without a word.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    start = launcher._call_children_scripts

    def start_and_watch() -> None:
        peers.before_children()
        start()
        peers.watch_children(launcher.procs)
        launcher.procs = []

    launcher._call_children_scripts = start_and_watch  # type: ignore[method-assign]


def _nothing() -> None:
    pass
