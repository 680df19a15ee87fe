"""Light over time: how it is measured (photometry, metrics) and what it adds to training (losses).

Nothing here knows a network, a mesh or a file format: functions that need pixels are handed pixels.
"""
