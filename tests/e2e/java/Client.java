// Java's HTTP client with its defaults: it requests an upgrade to HTTP/2 each time. java Client.java URL KEY
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Client {
    public static void main(String[] args) throws Exception {
        String film = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==";
        String body = "{\"messages\":[{\"role\":\"user\",\"content\":[{\"image_url\":{\"url\":\"" + film + "\"}},"
            + "{\"type\":\"text\",\"text\":\"Generate a report.\"}]}]}";
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
