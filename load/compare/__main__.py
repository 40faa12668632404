"""`python -m load.compare`."""

from load.compare.run import main

raise SystemExit(main())
