"""The pages as tests: every block of README.md and docs is run, or at least checked, as it stands.

``blocks.py`` finds the blocks, ``stage.py`` runs those of one section, and ``__main__.py`` is the process in which that
happens. ``types.py`` gives the blocks in Python to the type checkers.

The blocks of a section run in order, in one process in namespaces of its own:

- ``python`` runs in the running event loop, and may use ``await`` outside functions as in ``python -m asyncio``. A block
  that begins with a line such as ``# relay.py`` is written to that file instead.
- ``sh`` runs in a shell; ``console`` too, line by line where a line begins with ``# `` or ``$ ``, and what the commands
  print has to be what the block shows.
- ``text`` is what the block before it printed.

``...`` in what is shown stands for anything. What a reader does besides, or has beforehand, stands in comments::

    <!--- invisible-code-block: python
    program = await page.start("python step1.py", until="ready")
    -->

``page`` is the `Stage`. A block that cannot run here is only checked, and the comment before it says why::

    <!--- skip: next "takes a second machine" -->
"""
