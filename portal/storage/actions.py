"""What can be done with objects; each of them is a permission."""

# Publishing is for letting others in: with a word that says so, an object is everybody's.
LIST, READ, WRITE, DELETE, PUBLISH, READ_ACL = (f"storage.object.{verb}" for verb in ("list", "read", "write", "delete", "publish", "read_acl"))
# Of versions that are kept from deletion: say until when, say that there is a legal hold or none, pass a retention that gives way.
RETAIN, HOLD, BYPASS = (f"storage.object.{verb}" for verb in ("retain", "hold", "bypass_retention"))
