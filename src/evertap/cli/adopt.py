"""`evertap adopt`."""

from evertap.cli.adoption import adoption

command = adoption(
    "adopt",
    "Turn DOMAIN's interfaces of type='direct' into evertap's, from its next start on or at once.",
    lambda client, domain, dry_run, live: client.adopt(domain, dry_run=dry_run, live=live),
    "is adopted",
)
