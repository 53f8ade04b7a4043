import sys

import pedcxr_client

inspection = pedcxr_client.inspect(sys.argv[1], age="5y")  # the options of Client.report; opens no connection
print(inspection.verdict)
for check in inspection.checks:
    print(check.status, check.name, check.why)
if inspection.image is not None:
    print(*inspection.image.how, sep="; ")
    inspection.pixels.save("sent.png")
if inspection.prompt is not None:
    print(inspection.prompt.recorded)
