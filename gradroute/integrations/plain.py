"""`RoutedTrainer`: transformers' own trainer with routed adapters."""

from gradroute.integrations.routing import AttachAdapters, RoutedTraining


class RoutedTrainer(RoutedTraining, AttachAdapters):
    """`transformers.Trainer` with routed adapters; its arguments, and those of `RoutedTraining`."""
