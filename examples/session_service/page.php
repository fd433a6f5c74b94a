<?php
// A page in PHP behind a proxy that asks coatcheck who a request is from. It believes the signed header, and no other.
// JWKS=http://127.0.0.1:8100/v1/jwks AUDIENCE=https://shop.example ISSUER=coatcheck:farm CACHE=/var/lib/shop \
// php -S 127.0.0.1:3000 page.php      (CACHE: a directory in which nobody else can write)
declare(strict_types=1);

const LEEWAY_S = 5; // for clocks that disagree a little
const KEYS_LIVE_S = 60;

function plain(string $text): string
{
    return sodium_base642bin($text, SODIUM_BASE64_VARIANT_URLSAFE_NO_PADDING);
}

/** The public key of this name, kept in a file for a minute; null: there is none. */
function key_of(string $kid): ?string
{
    $file = getenv("CACHE") . "/coatcheck-jwks.json";
    if (!is_file($file) || time() - filemtime($file) > KEYS_LIVE_S) {
        $options = ["timeout" => 10, "follow_location" => 0];
        $text = @file_get_contents(getenv("JWKS"), false, stream_context_create(["http" => $options]));
        if (isset(json_decode((string) $text, true)["keys"])) { // else those that we have are good: the next request asks again
            $fresh = "$file." . getmypid();
            file_put_contents($fresh, $text);
            rename($fresh, $file);
        }
    }
    if (!is_file($file)) {
        http_response_code(503);
        exit("try again");
    }
    foreach (json_decode(file_get_contents($file), true, 8, JSON_THROW_ON_ERROR)["keys"] as $jwk) {
        if ($jwk["kid"] === $kid) {
            return plain($jwk["x"]);
        }
    }
    return null;
}

/** Whose request it is (RFC 7515, RFC 7519), or null. */
function verified(string $assertion): ?array
{
    $parts = explode(".", $assertion);
    if (count($parts) !== 3) {
        return null;
    }
    try {
        $head = json_decode(plain($parts[0]), true, 8, JSON_THROW_ON_ERROR);
        if (($head["alg"] ?? "") !== "EdDSA" || ($head["typ"] ?? "") !== "coatcheck-session+jwt") {
            return null;
        }
        $key = key_of($head["kid"]);
        if ($key === null || !sodium_crypto_sign_verify_detached(plain($parts[2]), "$parts[0].$parts[1]", $key)) {
            return null;
        }
        $who = json_decode(plain($parts[1]), true, 64, JSON_THROW_ON_ERROR);
    } catch (SodiumException | JsonException | TypeError) {
        return null; // none of ours
    }
    $in_time = $who["iat"] - LEEWAY_S <= time() && time() < $who["exp"] + LEEWAY_S;
    return $in_time && $who["aud"] === getenv("AUDIENCE") && $who["iss"] === getenv("ISSUER") ? $who : null;
}

$who = verified($_SERVER["HTTP_X_SESSION_ASSERTION"] ?? "");
http_response_code($who === null ? 403 : 200);
header("Content-Type: text/plain");
echo $who === null ? "no session" : "php $who[sub] " . ($who["claims"]["role"] ?? "");
