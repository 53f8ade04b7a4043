// A report with the HTTP client of Java 17 or newer: java Report.java. Prints the JSON of the response.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;

public class Report {
    static final String URL = "http://127.0.0.1:8000/v1/chat/completions";
    static final String BODY = """
        {
          "model": "pedcxr-demo",
          "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"}},
            {"type": "text", "text": "Generate a radiology report for this chest X-ray of a 6-year-old male."}
          ]}],
          "max_tokens": 500,
          "temperature": 0
        }
        """;

    public static void main(String[] args) throws Exception {
        byte[] film = Files.readAllBytes(Path.of("demo-films/pneumonia-6y.png"));
        HttpRequest request = HttpRequest.newBuilder(URI.create(URL))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(BODY.formatted(Base64.getEncoder().encodeToString(film))))
            .build();
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new IllegalStateException(response.statusCode() + ": " + response.body());
        }
        System.out.println(response.body());
    }
}
