"""Leaves that more than one page uses; pages import nothing else but `zoo.spec`."""
