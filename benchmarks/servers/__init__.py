"""Measure the server of this checkout beside that of version 0.4 and a plain one, alternately (benchmarks/README.md).

==================== ================================================================
``cli.py``           the command line; runs the works and writes the result
``settings.py``      what is measured
``session.py``       the state of a run: servers, sending process, rows
``materials.py``     images, detectors and correct scores
``make_detector.py`` writes a detector directory with the code of any checkout
``contenders.py``    the servers that are compared, and how each is started
``running.py``       a running server: memory, processor time, threads, metrics
``plain.py``         the plain server, FastAPI and ONNX Runtime
``protocols.py``     requests and answers of V1 and V2
``connection.py``    a small HTTP client
``load.py``          sends requests, in a process of its own
``quota.py``         one CPU for a server
``hostile.py``       the worst requests
``work_*.py``        one kind of measurement each
==================== ================================================================
"""
