"""The one place where parts are put together: configuration → store → repository → view.

Rule: nothing below builds what it uses; it is handed down from here. Three modules, so that a command imports
only the parts it needs.
"""
