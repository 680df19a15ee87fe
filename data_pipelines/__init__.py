"""Things that produce datasets on disk; nothing here knows about training."""
