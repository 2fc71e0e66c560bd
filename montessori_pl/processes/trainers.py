"""What Lightning's trainer does with signals and with the processes that it starts is left to us."""

from typing import TYPE_CHECKING

from montessori_pl.processes.peers import Peers

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


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
