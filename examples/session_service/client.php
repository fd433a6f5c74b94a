<?php
// A page in PHP that has its sessions in coatcheck's session service. PHP 8, nothing to install.
// SERVICE=http://127.0.0.1:8100 CREDENTIAL=shop.1.... php -S 127.0.0.1:3000 client.php
declare(strict_types=1);

const TIMEOUT_S = 10; // for a whole answer; for each read of its head
const MAX_BYTES = 8 << 20; // of an answer

/** One call of the service; null where the browser shows no session. */
function ask(string $path, array $body): ?array
{
    $headers = "Authorization: Bearer " . getenv("CREDENTIAL") . "\r\nContent-Type: application/json\r\n";
    // The service sends nobody elsewhere, and nobody else is told the credential or a cookie: no redirect is followed.
    $options = ["method" => "POST", "header" => $headers, "timeout" => TIMEOUT_S, "ignore_errors" => true,
        "follow_location" => 0, "content" => json_encode($body, JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE)];
    $until = microtime(true) + TIMEOUT_S;
    $stream = @fopen(getenv("SERVICE") . "/v1/sessions$path", "r", false, stream_context_create(["http" => $options]));
    for ($text = ""; $stream && !feof($stream) && strlen($text) <= MAX_BYTES && microtime(true) < $until;) {
        $text .= fread($stream, 65_536);
    }
    if (!$stream || !feof($stream)) {
        throw new RuntimeException("the session service does not answer", 503);
    }
    $status = (int) explode(" ", $http_response_header[0])[1];
    $found = json_decode($text, true, 512, JSON_THROW_ON_ERROR);
    if ($status < 300 && (isset($found["session"]) || isset($found["set_cookie"]))) { // all its answers have one of them
        return $found;
    }
    $type = $found["type"] ?? "none of its answers";
    if ($type === "urn:coatcheck:problem:no-session") {
        return null;
    }
    throw new RuntimeException($type, $status);
}

/** What the browser is to be given goes back to it, whatever else the page answers. */
function answer(int $status, ?array $given, string $text): void
{
    http_response_code($status);
    foreach ($given["set_cookie"] ?? [] as $line) {
        header("Set-Cookie: $line", false);
    }
    header("Cache-Control: no-store");
    header("Content-Type: text/plain");
    echo $text;
}

function page(string $method, string $url): void
{
    // A header is bytes, of which JSON has none: each goes as the character of its number, cookies of others, too.
    $cookie = iconv("ISO-8859-1", "UTF-8", $_SERVER["HTTP_COOKIE"] ?? "");
    $shown = ["cookie" => $cookie, "client" => $_SERVER["REMOTE_ADDR"]];
    if ($method === "POST" && str_starts_with($url, "/login/")) {
        $user = rawurldecode(substr($url, strlen("/login/"))); // after you have checked a password
        $given = ask("", $shown + ["user" => $user]);
        answer(200, $given, "welcome, " . $given["session"]["user"]);
        return;
    }
    if ($method === "POST" && $url === "/logout") {
        answer(200, ask("/close", $shown), "good bye");
        return;
    }
    $given = ask("/renew", $shown);
    if (($given["session"]["user"] ?? null) === null) {
        answer(401, $given, "log in first");
        return;
    }
    $items = $given["session"]["data"]["items"] ?? 0;
    if ($method === "POST" && $url === "/add") {
        // With the version, no click is lost: who was overtaken is told so (409).
        $items += 1;
        $given = ask("/update", $shown + ["set" => ["items" => $items], "version" => $given["session"]["version"]]);
        answer(200, $given, (string) $items);
        return;
    }
    answer(200, $given, $given["session"]["user"] . " $items");
}

try {
    page($_SERVER["REQUEST_METHOD"], $_SERVER["REQUEST_URI"]);
} catch (Throwable $error) {
    answer($error->getCode() === 409 ? 409 : 503, null, "try again");
}
