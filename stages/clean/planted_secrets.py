"""The formats in which credentials are planted: providers' tokens, lines that assign a password, and what is known to be missed.

In: planted_values.py. Out: makers of a value with the words around it. No value stands here, so that no scanner takes this file for a leak.
"""

import base64
from collections.abc import Callable
from random import Random

from stages.clean import planted_values as v
from stages.clean.planted_values import ALNUM, HEX, LOWER, UPPER, Maker, draw, mixed, plain

_BASE32 = UPPER + "234567"
_URLSAFE = ALNUM + "-_"


def _uuid(rng: Random) -> str:
    return v.grouped(draw(rng, HEX, 32), (8, 4, 4, 4, 12), "-")


def _token(*parts: str | tuple[str, int]) -> Maker:
    """A token of fixed parts and drawn ones: an alphabet and how many characters of it."""
    return plain(lambda rng: "".join(part if isinstance(part, str) else mixed(rng, part[1], part[0]) for part in parts))


TOKENS: dict[tuple[str, str], Maker] = {
    ("aws_access_key", "long-term"): _token("AKIA", (_BASE32, 16)),
    ("aws_access_key", "temporary"): _token("ASIA", (_BASE32, 16)),
    ("github_token", "classic"): _token("ghp_", (ALNUM, 36)),
    ("github_token", "OAuth"): _token("gho_", (ALNUM, 36)),
    ("github_token", "server"): _token("ghs_", (ALNUM, 36)),
    ("github_token", "fine-grained"): _token("github_pat_", (ALNUM, 22), "_", (ALNUM, 59)),
    ("gitlab_token", "personal"): _token("glpat-", (_URLSAFE, 20)),
    ("gitlab_token", "deploy"): _token("gldt-", (_URLSAFE, 20)),
    ("gitlab_token", "runner"): _token("glrt-", (_URLSAFE, 20)),
    ("slack_token", "bot"): plain(lambda rng: f"xoxb-{draw(rng, v.DIGITS, 12)}-{draw(rng, v.DIGITS, 12)}-{draw(rng, ALNUM, 24)}"),
    ("slack_token", "user"): plain(
        lambda rng: f"xoxp-{draw(rng, v.DIGITS, 11)}-{draw(rng, v.DIGITS, 11)}-{draw(rng, v.DIGITS, 12)}-{draw(rng, HEX, 32)}"
    ),
    ("slack_token", "app"): plain(lambda rng: f"xapp-1-A{draw(rng, UPPER, 10)}-{draw(rng, v.DIGITS, 13)}-{draw(rng, HEX, 64)}"),
    ("slack_token", "webhook"): lambda rng: (
        "https://",
        f"hooks.slack.com/services/T{draw(rng, UPPER, 8)}/B{draw(rng, UPPER, 8)}/{draw(rng, ALNUM, 24)}",
        "",
    ),
    ("stripe_key", "live"): _token("sk_live_", (ALNUM, 24)),
    ("stripe_key", "restricted"): _token("rk_live_", (ALNUM, 40)),
    ("stripe_key", "webhook"): _token("whsec_", (ALNUM, 32)),
    ("google_key", "API"): _token("AIzaSy", (_URLSAFE, 31), (ALNUM, 2)),
    ("google_key", "OAuth secret"): _token("GOCSPX-", (_URLSAFE, 28)),
    ("google_key", "OAuth access"): _token("ya29.", (_URLSAFE, 120)),
    ("azure_key", "client secret"): _token((ALNUM, 3), "8Q~", (ALNUM + "-_.~", 34)),
    ("azure_key", "storage account"): _token("AccountKey=", (ALNUM + "+/", 86), "=="),
    ("anthropic_key", "API"): _token("sk-ant-api03-", (_URLSAFE, 93), "AA"),
    ("openai_key", "project"): _token("sk-proj-", (_URLSAFE, 74), "T3BlbkFJ", (_URLSAFE, 74)),
    ("openai_key", "classic"): _token("sk-", (ALNUM, 20), "T3BlbkFJ", (ALNUM, 20)),
    ("hugging_face_token", "user"): _token("hf_", (v.ALNUM, 34)),
    ("package_token", "npm"): _token("npm_", (ALNUM, 36)),
    ("package_token", "PyPI"): _token("pypi-AgEIcHlwaS5vcmc", (_URLSAFE, 120)),
    ("package_token", "RubyGems"): _token("rubygems_", (HEX, 48)),
    ("package_token", "Docker"): _token("dckr_pat_", (_URLSAFE, 27)),
    ("mail_service_key", "SendGrid"): _token("SG.", (_URLSAFE, 22), ".", (_URLSAFE, 43)),
    ("mail_service_key", "Mailgun"): _token("key-", (HEX, 32)),
    ("mail_service_key", "Mailchimp"): _token((HEX, 32), "-us14"),
    ("mail_service_key", "Brevo"): _token("xkeysib-", (HEX, 64), "-", (ALNUM, 16)),
    ("chat_token", "Telegram bot"): plain(lambda rng: f"{draw(rng, v.DIGITS[1:], 10)}:AA{draw(rng, _URLSAFE, 33)}"),
    ("chat_token", "Discord bot"): _token("MT", (ALNUM, 24), ".", (_URLSAFE, 6), ".", (_URLSAFE, 38)),
    ("chat_token", "Discord webhook"): lambda rng: (
        "https://",
        f"discord.com/api/webhooks/{draw(rng, v.DIGITS[1:], 18)}/{draw(rng, _URLSAFE, 68)}",
        "",
    ),
    ("chat_token", "Teams webhook"): lambda rng: (
        "https://acme.",
        f"webhook.office.com/webhookb2/{_uuid(rng)}@{_uuid(rng)}/IncomingWebhook/{draw(rng, HEX, 32)}/{_uuid(rng)}",
        "",
    ),
    ("jwt", "signed"): plain(v.jwt),
    ("private_key", "RSA"): plain(lambda rng: v.pem(rng, "RSA PRIVATE" + " KEY", rng.randrange(10, 26))),
    ("private_key", "PKCS 8"): plain(lambda rng: v.pem(rng, "PRIVATE" + " KEY", rng.randrange(10, 26))),
    ("private_key", "EC"): plain(lambda rng: v.pem(rng, "EC PRIVATE" + " KEY", 2)),
    ("private_key", "OpenSSH"): plain(lambda rng: v.pem(rng, "OPENSSH PRIVATE" + " KEY", rng.randrange(4, 30))),
    ("private_key", "in JSON"): plain(lambda rng: v.pem(rng, "PRIVATE" + " KEY", rng.randrange(10, 26), breaks="\\n")),
    ("private_key", "encrypted RSA"): plain(
        lambda rng: v.pem(
            rng, "RSA PRIVATE" + " KEY", 12, head=f"Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,{draw(rng, HEX, 32).upper()}\n\n"
        )
    ),
    ("private_key", "PGP"): plain(lambda rng: v.pem(rng, "PGP PRIVATE" + " KEY BLOCK", 20, head="\n")),
    ("private_key", "age"): _token("AGE-SECRET-KEY-1", ("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58)),
    ("provider_token", "1Password"): _token(
        "A3-",
        (UPPER + v.DIGITS, 6),
        "-",
        (UPPER + v.DIGITS, 11),
        "-",
        (UPPER + v.DIGITS, 5),
        "-",
        (UPPER + v.DIGITS, 5),
        "-",
        (UPPER + v.DIGITS, 5),
    ),
    ("provider_token", "Airtable"): _token("pat", (ALNUM, 14), ".", (HEX, 64)),
    ("provider_token", "Alibaba"): _token("LTAI", (ALNUM, 20)),
    ("provider_token", "Artifactory"): _token("AKCp", (ALNUM, 69)),
    ("provider_token", "Atlassian"): _token("ATATT3", (_URLSAFE, 186)),
    ("provider_token", "Buildkite"): _token("bkua_", (HEX, 40)),
    ("provider_token", "Databricks"): _token("dapi", (HEX, 32)),
    ("provider_token", "DigitalOcean"): _token("dop_v1_", (HEX, 64)),
    ("provider_token", "Doppler"): _token("dp.pt.", (ALNUM, 43)),
    ("provider_token", "Dropbox"): _token("sl.", (_URLSAFE, 135)),
    ("provider_token", "Dynatrace"): _token("dt0c01.", (UPPER + v.DIGITS, 24), ".", (UPPER + v.DIGITS, 64)),
    ("provider_token", "Facebook"): _token("EAACE", (ALNUM, 150)),
    ("provider_token", "Figma"): _token("figd_", (_URLSAFE, 40)),
    ("provider_token", "Fly.io"): _token("fo1_", (_URLSAFE, 43)),
    ("provider_token", "Grafana"): _token("glsa_", (ALNUM, 32), "_", (HEX, 8)),
    ("provider_token", "Groq"): _token("gsk_", (ALNUM, 52)),
    ("provider_token", "Heroku"): _token("HRKU-AA", (_URLSAFE, 58)),
    ("provider_token", "Linear"): _token("lin_api_", (ALNUM, 40)),
    ("provider_token", "New Relic"): _token("NRAK-", (UPPER + v.DIGITS, 27)),
    ("provider_token", "Notion"): plain(lambda rng: f"ntn_{draw(rng, v.DIGITS, 11)}{draw(rng, ALNUM, 35)}"),
    ("provider_token", "NVIDIA"): _token("nvapi-", (_URLSAFE, 64)),
    ("provider_token", "OpenShift"): _token("sha256~", (_URLSAFE, 43)),
    ("provider_token", "Perplexity"): _token("pplx-", (ALNUM, 48)),
    ("provider_token", "PlanetScale"): _token("pscale_tkn_", (_URLSAFE, 43)),
    ("provider_token", "Postman"): _token("PMAK-", (HEX, 24), "-", (HEX, 34)),
    ("provider_token", "Pulumi"): _token("pul-", (HEX, 40)),
    ("provider_token", "Replicate"): _token("r8_", (ALNUM, 37)),
    ("provider_token", "Sentry"): _token("sntryu_", (HEX, 64)),
    ("provider_token", "Shopify"): _token("shpat_", (HEX, 32)),
    ("provider_token", "Sonar"): _token("squ_", (HEX, 40)),
    ("provider_token", "Square"): _token("sq0atp-", (_URLSAFE, 22)),
    ("provider_token", "Supabase"): _token("sbp_", (HEX, 40)),
    ("provider_token", "Tailscale"): _token("tskey-auth-", (ALNUM, 12), "-", (ALNUM, 32)),
    ("provider_token", "Terraform"): _token((ALNUM, 14), ".atlasv1.", (_URLSAFE, 67)),
    ("provider_token", "Twilio"): _token("SK", (HEX, 32)),
    ("provider_token", "Vault"): _token("hvs.", (_URLSAFE, 95)),
    ("provider_token", "xAI"): _token("xai-", (ALNUM, 80)),
}


def _line(before: str, behind: str, make: Callable[[Random], str] = v.password) -> Maker:
    return lambda rng: (before, make(rng), behind)


def _hex(rng: Random) -> str:
    return mixed(rng, 32, HEX)


def _secret(rng: Random) -> str:
    return mixed(rng, 40, ALNUM + "+/")


LINES: dict[tuple[str, str], Maker] = {
    ("password_in_url", "PostgreSQL"): _line("DATABASE_URL=postgres://app:", "@db.acme.io:5432/app", lambda rng: mixed(rng, 14)),
    ("password_in_url", "MongoDB"): _line('connect("mongodb+srv://root:', '@cluster0.ab1cd.mongodb.net/test")', lambda rng: mixed(rng, 16)),
    ("password_in_url", "git over https"): _line("git clone https://ann:", "@git.acme.io/team/app.git", lambda rng: mixed(rng, 20)),
    ("password_in_url", "Redis without user"): _line("redis://:", "@cache.acme.io:6379/0", lambda rng: mixed(rng, 24)),
    ("password_in_url", "query"): _line("GET https://api.acme.io/v1/users?page=2&api_key=", "&x=1", _hex),
    ("assigned_secret", "environment file"): _line("DB_PASSWORD=", "\nDB_HOST=db"),
    ("assigned_secret", "YAML"): _line("database:\n  user: app\n  password: ", "\n  port: 5432"),
    ("assigned_secret", "quoted in Python"): _line('PASSWORD = "', '"'),
    ("assigned_secret", "JSON"): _line('{"user": "app", "password": "', '", "port": 1}'),
    ("assigned_secret", "INI"): _line("[db]\npasswd = ", "\n"),
    ("assigned_secret", "connection string"): _line("Server=db;Database=app;Uid=app;Pwd=", ";Port=1", lambda rng: mixed(rng, 14)),
    ("assigned_secret", "XML element"): _line("<user>app</user><password>", "</password>", lambda rng: mixed(rng, 14)),
    ("assigned_secret", "command line"): _line("mysqldump --user=app --password=", " app > dump.sql", lambda rng: mixed(rng, 14)),
    ("assigned_secret", "command line, blank"): _line(
        "docker login --username app --password ", " registry.acme.io", lambda rng: mixed(rng, 14)
    ),
    ("assigned_secret", "SQL"): _line("CREATE USER app IDENTIFIED BY '", "';", lambda rng: mixed(rng, 14)),
    ("assigned_secret", "netrc"): _line("machine git.acme.io login ann password ", "\n", lambda rng: mixed(rng, 14)),
    ("assigned_secret", "curl -u"): _line("curl -u ann:", " https://api.acme.io/v1", lambda rng: mixed(rng, 14)),
    ("assigned_secret", "AWS secret key"): _line("aws_secret_access_key = ", "\n", _secret),
    ("assigned_secret", "API key, hexadecimal"): _line("ADAFRUIT_API_KEY=", "\n", _hex),
    ("assigned_secret", "client secret in JSON"): _line('{"client_id": "app", "client_secret": "', '"}', lambda rng: mixed(rng, 32)),
    ("assigned_secret", "auth token, shell"): _line('export AUTH_TOKEN="', '"', lambda rng: mixed(rng, 40)),
    ("assigned_secret", "secret key in Django"): _line(
        "SECRET_KEY = 'django", "'", lambda rng: mixed(rng, 50, LOWER + v.DIGITS + "!@#%^&*+-_=")
    ),
    ("assigned_secret", "header Bearer"): _line('headers = {"Authorization": "Bearer ', '"}', lambda rng: mixed(rng, 40)),
    ("assigned_secret", "header Basic"): _line("curl -H 'Authorization: Basic ", "' https://api.acme.io", lambda rng: mixed(rng, 28)),
    ("assigned_secret", "passphrase of words, quoted"): _line('passphrase: "', '"', lambda rng: "-".join(rng.sample(v.LAST, 4))),
}

BEYOND: dict[tuple[str, str], Maker] = {
    ("assigned_secret", "password told in a sentence"): _line("My password is ", ", please change it."),
    ("assigned_secret", "password without digits"): _line("password: ", "\n", lambda rng: "".join(rng.sample(v.LAST, 2))),
    ("assigned_secret", "password of digits"): _line("password=", "\n", lambda rng: draw(rng, v.DIGITS, 8)),
    ("assigned_secret", "password of seven characters"): _line("pwd=", "\n", lambda rng: mixed(rng, 7)),
    ("assigned_secret", "AWS secret without its name"): _line("The other half of the pair is ", " .", _secret),
    ("assigned_secret", "in a name of its own"): _line("ADAFRUIT=", "\n", _hex),
    ("assigned_secret", "split over two literals"): _line('token = "', '"', lambda rng: f'{mixed(rng, 12)}" + "{mixed(rng, 12)}'),
    ("jwt", "in base64 again"): _line("", "", lambda rng: base64.b64encode(v.jwt(rng).encode()).decode()),
}
