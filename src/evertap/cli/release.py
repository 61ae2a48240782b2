"""`evertap release`."""

from evertap.cli.adoption import adoption

command = adoption(
    "release",
    "Give DOMAIN the interfaces back that `adopt` has changed, exactly as they were.",
    lambda client, domain, dry_run, live: client.release(domain, dry_run=dry_run, live=live),
    "is released",
)
