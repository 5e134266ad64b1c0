"""What the epochs of a phase are made of: which images, in which order, and who learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from sidestep.data import ImageSet, Shard
from sidestep.data.apart import parts
from sidestep.data.image_set import Indices
from sidestep.training.training_config import Phase, TrainingConfig
from sidestep.types import Batch


@dataclass(frozen=True)
class Epochs:
    """The epochs of a phase.

    Attributes:
        images: the training split.
        config: batch size, seed, and what is left unlearnt.
        phase: says which images.
    """

    images: ImageSet
    config: TrainingConfig
    phase: Phase

    @cached_property
    def num_steps(self) -> int:
        """Return the number of steps of an epoch, the same for all of a phase."""
        counts = [self.images.num_steps(self.config.batch_size, among) for among in self._among(0).values()]
        return min(sum(counts), self.config.max_steps or sum(counts))

    def batches(self, epoch: int, *, start_step: int = 0, shard: Shard | None = None) -> Iterator[Batch]:
        """Return the batches of an epoch of the run, from a step on.

        Where blocks and routers learn from images of their own, their steps are spread evenly, so that both
        come to the end of theirs together.

        Args:
            epoch: of the run, counted over its phases.
            start_step: steps of the epoch that were done before.
            shard: this process among all.
        """
        among = self._among(epoch)
        counts = {who: self.images.num_steps(self.config.batch_size, each) for who, each in among.items()}
        turns = _turns(counts)
        streams = {
            who: self.images.train_batches(
                epoch=epoch,
                start_step=turns[:start_step].count(who),
                batch_size=self.config.batch_size,
                shard=shard,
                seed=self.config.seed,
                among=each,
            )
            for who, each in among.items()
        }
        for who in turns[start_step : self.num_steps]:
            yield replace(next(streams[who]), learners=who)

    def _among(self, epoch: int) -> dict[str | None, Indices | None]:
        """Return the images by who learns from them; None is whatever the phase trains, and all images."""
        if self.phase.images == "all":
            return {None: None}
        unlearnt = self.config.unlearnt
        labels = self.images.labels.cpu().numpy()
        turn = epoch if unlearnt.turns else 0
        learnt, left = parts(labels, share=unlearnt.share, seed=unlearnt.seed, turn=turn)
        if self.phase.images == "apart":
            return {"blocks": learnt, "routers": left}
        return {None: learnt if self.phase.images == "learnt" else left}


def _turns(counts: dict[str | None, int]) -> list[str | None]:
    """Return who learns in every step, with each one's steps spread evenly."""
    places = [((step + 0.5) / count, who) for who, count in counts.items() for step in range(count)]
    return [who for _, who in sorted(places, key=lambda place: place[0])]
