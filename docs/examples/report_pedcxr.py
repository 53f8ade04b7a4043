from pedcxr_client import Client

with Client("http://127.0.0.1:8000/v1") as client:
    report = client.report("demo-films/pneumonia-6y.png", age="6y", sex="M")
    print(report.findings, report.impression, report.timing.ttft)
