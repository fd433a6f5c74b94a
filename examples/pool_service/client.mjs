// Calls a web service with sessions from Node, through a pool that it shares with everybody: many calls, few logins.
//
//   coatcheck soap serve --user SADMIN:secret &
//   coatcheck pool serve --token-file bearer --per-user 2 &
//   POOL=http://127.0.0.1:8200 BEARER="$(cat bearer)" UPSTREAM=http://127.0.0.1:8300/soap \
//   CALLER=SADMIN PASSWORD=secret node client.mjs 100
//
// `Pool` is for any upstream; `logIn` and `call` below are for SOAP. Nothing but Node 18 is needed.

const TRIES = 3; // of a request that got no answer; the service knows repeated ones

export class PoolProblem extends Error {
  constructor(problem, retryAfter) {
    super(`${problem.title}: ${problem.detail}`);
    this.name = problem.type.replace("urn:coatcheck:problem:", "");
    this.retryAfter = retryAfter;
  }
}

export class Pool {
  constructor(url, bearer) {
    this.url = url;
    this.headers = { Authorization: `Bearer ${bearer}`, "Content-Type": "application/json" };
  }

  async ask(path, body, tries = TRIES) {
    const request = { method: "POST", headers: this.headers, body: JSON.stringify(body), redirect: "error" };
    let answer;
    for (let tried = 1; ; tried++) {
      try {
        answer = await fetch(this.url + path, request);
        break;
      } catch (error) {
        if (tried >= tries) throw error;
      }
    }
    if (answer.status === 204) return null;
    const told = await answer.json();
    if (!answer.ok) throw new PoolProblem(told, answer.headers.get("retry-after"));
    return told;
  }

  // A lease; where there is no token, after a login of ours.
  async checkOut(user, password, logIn) {
    // Not repeated: a lease that was granted unknown to us would wait for its deadline.
    const given = await this.ask(`/v1/users/${encodeURIComponent(user)}/checkout`, { password }, 1);
    if (!given.login) return given;
    let token;
    try {
      token = await logIn();
    } catch (error) {
      await this.ask(`/v1/leases/${given.lease}/fail`, { refused: error.refused === true });
      throw error;
    }
    return this.ask(`/v1/leases/${given.lease}/complete`, { token });
  }

  // One call with a token: `call(token)` answers { value, token } with the refreshed token, or { expired: true }, which
  // means that it was refused and nothing was done.
  async use(user, password, logIn, call) {
    for (;;) {
      const held = await this.checkOut(user, password, logIn);
      let answer;
      try {
        answer = await call(held.token);
      } catch (error) {
        // Nobody knows what became of the session.
        await this.ask(`/v1/leases/${held.lease}/checkin`, { failed: true });
        throw error;
      }
      if (!answer.expired) {
        await this.ask(`/v1/leases/${held.lease}/checkin`, { token: answer.token });
        return answer.value;
      }
      const { again } = await this.ask(`/v1/leases/${held.lease}/refuse`, {});
      if (!again) throw new Error("a token that is fresh from a login was refused");
    }
  }
}

// -- the upstream

const SESSION = "http://siebel.com/webservices";
const LOG_IN_AGAIN = ["TokenInvalid", "TokenExpired", "SessionExpired", "WrongServer"];
const escaped = (text) => text.replace(/[<>&]/g, (sign) => `&#${sign.charCodeAt(0)};`);
const within = (text, name) => text.match(new RegExp(`<(?:\\w+:)?${name}[^>]*>([^<]*)<`))?.[1];

async function soap(url, operation, headers) {
  const blocks = Object.entries({ SessionType: "Stateless", ...headers })
    .map(([name, value]) => `<${name} xmlns="${SESSION}">${escaped(value)}</${name}>`)
    .join("");
  const answer = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/soap+xml; charset=utf-8" },
    body:
      `<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"><e:Header>${blocks}</e:Header>` +
      `<e:Body><${operation} xmlns="urn:coatcheck:provider"/></e:Body></e:Envelope>`,
  });
  const text = await answer.text();
  const detail = text.match(/Detail>(.*)<\/\w+:Detail>/)?.[1];
  const reason = detail && within(detail, "Reason");
  return { token: within(text, "SessionToken"), reason, session: within(text, "session"), user: within(text, "username") };
}

async function main() {
  const { POOL, BEARER, UPSTREAM, CALLER, PASSWORD } = process.env;
  const pool = new Pool(POOL, BEARER);
  let logins = 0;

  async function logIn() {
    logins++;
    const answer = await soap(UPSTREAM, "WhoAmI", { UsernameToken: CALLER, PasswordText: PASSWORD });
    if (!answer.token) throw Object.assign(new Error(answer.reason), { refused: answer.reason === "LoginFailed" });
    return answer.token;
  }

  async function call(token) {
    const answer = await soap(UPSTREAM, "WhoAmI", { SessionToken: token });
    if (LOG_IN_AGAIN.includes(answer.reason)) return { expired: true };
    if (answer.reason) throw new Error(answer.reason);
    return { value: answer, token: answer.token };
  }

  const count = Number(process.argv[2] ?? 10);
  const work = Array.from({ length: count }, () => pool.use(CALLER, PASSWORD, logIn, call));
  const answers = await Promise.all(work);
  const users = [...new Set(answers.map((each) => each.user))];
  console.log(JSON.stringify({ calls: answers.length, logins, users, sessions: new Set(answers.map((each) => each.session)).size }));
}

if (import.meta.url === `file://${process.argv[1]}`) {
  main().catch((error) => {
    console.error(`${error.name}: ${error.message}`);
    process.exit(1);
  });
}
