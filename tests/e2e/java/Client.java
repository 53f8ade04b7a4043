// Java's HTTP client with its defaults: it requests an upgrade to HTTP/2 each time. java Client.java URL KEY
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Client {
    public static void main(String[] args) throws Exception {
        String body = "{\"messages\":[{\"role\":\"user\",\"content\":\"Generate a report.\"}]}";
        HttpClient client = HttpClient.newHttpClient();
        HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + "/chat/completions"))
            .header("Content-Type", "application/json")
            .header("Authorization", "Bearer " + args[1])
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        for (int turn = 0; turn < 2; turn++) { // the second request uses the same connection
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
