"""All settings, from the environment alone. Each variable has its line in the README.

With no `DATABASE_URL` in the environment, the variables of the running embedded servers are used
(`hpts/embedded.py` writes them below `var/`), so that `manage.py` finds what `make run` started.
"""

from __future__ import annotations

import os
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from hpts import embedded

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "1.0.0"

env = environ.Env()
if not env.str("DATABASE_URL", ""):
    for name, value in embedded.environment().items():
        os.environ.setdefault(name, value)

# Production is the default: only `make run`, `make test` and CI say HPTS_DEVELOPMENT=1.
DEVELOPMENT = env.bool("HPTS_DEVELOPMENT", False)
DEBUG = False
GIT_SHA = env.str("HPTS_GIT_SHA", "unknown")
# What production has to set is checked when it starts, and by `manage.py check --deploy` (hpts/deployment.py).
SECRET_KEY = env.str("HPTS_SECRET_KEY", "development-only-secret-key" if DEVELOPMENT else "")
ALLOWED_HOSTS = env.list("HPTS_ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])

# --- Databases -------------------------------------------------------------------------------------------------------
# `default` is the application's role (hpts_app); `owner` runs migrations; `readonly` is for reports.
STATEMENT_TIMEOUT_MS = env.int("HPTS_STATEMENT_TIMEOUT_MS", 5_000)
LOCK_TIMEOUT_MS = env.int("HPTS_LOCK_TIMEOUT_MS", 2_000)
IDLE_IN_TRANSACTION_TIMEOUT_MS = env.int("HPTS_IDLE_IN_TRANSACTION_TIMEOUT_MS", 10_000)


def _database(url: str) -> dict[str, object]:
    """Django's database dictionary for a URL, with the time limits of docs/operations.md as session defaults."""
    config: dict[str, object] = env.db_url_config(url) if url else {"ENGINE": "django.db.backends.postgresql"}
    limits = {
        "statement_timeout": STATEMENT_TIMEOUT_MS,
        "lock_timeout": LOCK_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT_MS,
        # A client that died while its backend works is noticed within a second, so its key is free again.
        "client_connection_check_interval": 1_000,
        # A plan whose estimate is large is compiled for longer than it runs: every statement here goes by key.
        "jit": "off",
    }
    options: dict[str, object] = {
        "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
        "connect_timeout": 2,
        "keepalives_idle": 10,
        "tcp_user_timeout": 15_000,
        "application_name": "hpts",
        "server_side_binding": True,
        "prepare_threshold": 1,
    }
    config["OPTIONS"] = options
    config["ATOMIC_REQUESTS"] = False
    # One connection a thread, kept: the server's thread count is the pool's size. hpts/tenancy.py notices a dead one.
    config["CONN_MAX_AGE"] = None
    return config


DATABASES = {
    "default": _database(env.str("DATABASE_URL", "")),
    "owner": _database(env.str("HPTS_OWNER_DATABASE_URL", "") or env.str("DATABASE_URL", "")),
    "readonly": _database(env.str("HPTS_READONLY_DATABASE_URL", "") or env.str("DATABASE_URL", "")),
}
# Migrations lock tables for a moment or give up; the long statements are theirs alone.
DATABASES["owner"]["OPTIONS"] = {
    "options": "-c lock_timeout=4000",
    "connect_timeout": 2,
    "application_name": "hpts-owner",
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Applications ----------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    # Before Django's admin, whose templates it replaces; "Basic" leaves the one site to hpts/admin.py.
    "unfold.apps.BasicAppConfig",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "rest_framework",
    "oauth2_provider",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "hpts",
    "ledger",
    "reconciliation",
    "webhooks",
]
MIDDLEWARE = [
    "hpts.middleware.RequestIdentity",
    "hpts.doors.Doors",
    "hpts.middleware.ShortWay",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "hpts.middleware.AdminContentPolicy",
    "hpts.middleware.AdminSessions",
    "hpts.middleware.AdminForgeryProtection",
    "hpts.middleware.AdminUsers",
    "hpts.middleware.AdminSecondFactor",
    "hpts.middleware.AdminMessages",
    "hpts.middleware.AdminThrottle",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "hpts.middleware.Views",
]
ROOT_URLCONF = "hpts.urls"
WSGI_APPLICATION = "hpts.wsgi.application"
APPEND_SLASH = False
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "var" / "static"
WHITENOISE_USE_FINDERS = True
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
SECURE_CONTENT_TYPE_NOSNIFF = True

# --- Who may sign in to the admin ------------------------------------------------------------------------------------
# A session lasts a shift and ends with the browser. Behind TLS the cookies are bound to this very host by their names.
SESSION_COOKIE_AGE = env.int("HPTS_ADMIN_SESSION_SECONDS", 28_800)
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEVELOPMENT
SECURE_HSTS_SECONDS = 0 if DEVELOPMENT else 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SILENCED_SYSTEM_CHECKS = [
    "axes.W002",  # its middleware is there, for the admin alone: hpts.middleware.AdminThrottle
    "oauth2_provider.W008",  # http is for loopback addresses alone (RFC 8252): hpts.oauth.register_reader
    "security.W003",  # forgery protection is there, for the admin alone: hpts.middleware.AdminForgeryProtection
    "security.W008",  # the proxy in front, where TLS ends, redirects
    "security.W021",  # whether a domain goes into the browsers' lists is its owner's to say
]
SESSION_COOKIE_NAME = "hpts-session" if DEVELOPMENT else "__Host-hpts-session"
CSRF_COOKIE_NAME = "hpts-csrf" if DEVELOPMENT else "__Host-hpts-csrf"
LOGIN_URL = "/admin/login/"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
# The first one refuses who has failed too often; the second one knows passwords.
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "hpts.access.StaffBackend"]
# Whether staff need the code of an authenticator application besides their password.
ADMIN_TWO_FACTOR = env.bool("HPTS_ADMIN_TWO_FACTOR", False)
OTP_TOTP_ISSUER = "HPTS"
# A name is refused from an address after so many failures in a row, for so long.
AXES_FAILURE_LIMIT = env.int("HPTS_ADMIN_LOGIN_FAILURES", 5)
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_CALLABLE = "hpts.access.locked_out"
# The log of sign-ins is the audit's; this one would keep a second.
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
UNFOLD = {"SITE_TITLE": "HPTS", "SITE_HEADER": "HPTS", "STYLES": [], "SCRIPTS": []}

# --- API -------------------------------------------------------------------------------------------------------------
MAX_BODY_BYTES = 256 * 1024
MAX_BATCH_BODY_BYTES = 16 * 1024 * 1024
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BATCH_BODY_BYTES
# How many requests of a process may wait for something to happen: half of its threads.
WAITING_READERS = max(env.int("HPTS_WEB_THREADS", 8) // 2, 1)
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["hpts.auth.BearerToken"],
    "DEFAULT_PERMISSION_CLASSES": ["hpts.auth.HasScope"],
    "DEFAULT_PARSER_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["hpts.rendering.JSON"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "hpts.rendering.JSONOnly",
    "DEFAULT_SCHEMA_CLASS": "hpts.openapi.Schema",
    "EXCEPTION_HANDLER": "hpts.problems.exception_handler",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "OAS_VERSION": "3.1.0",
    # Paths stand in the API document without /v1, which its servers have.
    "SCHEMA_PATH_PREFIX": "/v1",
    "SCHEMA_PATH_PREFIX_TRIM": True,
    "POSTPROCESSING_HOOKS": ["hpts.openapi.complete"],
}

# --- Doors -----------------------------------------------------------------------------------------------------------
# What the proxy that ends TLS shows to be believed. With it set, production answers to nobody but the proxy.
PROXY_SECRET = env.str("HPTS_PROXY_SECRET", "")
if 0 < len(PROXY_SECRET) < 32:
    raise ImproperlyConfigured("HPTS_PROXY_SECRET must have 32 characters or more: openssl rand -hex 32")
# Where partners call with their certificates (https://partner.example.com): published in the issuer's metadata.
PARTNER_URL = env.str("HPTS_PARTNER_URL", "")

# --- Who may call ----------------------------------------------------------------------------------------------------
# The own issuer signs with HPTS_SIGNING_KEY (RSA, PEM). HPTS_PREVIOUS_SIGNING_KEYS holds the public keys (PEM, one after
# the other) of keys that were replaced less than an hour ago. With HPTS_JWKS_URL set, tokens of that external issuer are
# accepted instead and the own token endpoint is off.
JWKS_URL = env.str("HPTS_JWKS_URL", "")
ISSUER = env.str("HPTS_ISSUER", f"http://localhost:{env.int('PORT', 3000)}")
AUDIENCE = env.str("HPTS_AUDIENCE", "hpts")
SIGNING_KEY = env.str("HPTS_SIGNING_KEY", "", multiline=True)
PREVIOUS_SIGNING_KEYS = env.str("HPTS_PREVIOUS_SIGNING_KEYS", "", multiline=True)
ACCESS_TOKEN_SECONDS = 3600
# People sign in here, and are led back to what they wanted.
LOGIN_URL = "admin:login"
# Called with a tenant's id (str) when a token is first verified: may this tenant's tokens be used?
HPTS_TENANT_EXISTS = "ledger.queries.tenant_is_active"
OAUTH2_PROVIDER_APPLICATION_MODEL = "hpts.ApiClient"
OAUTH2_PROVIDER = {
    # Client credentials, and the code for people: the other grants have no endpoint.
    "OAUTH2_SERVER_CLASS": "hpts.oauth.Server",
    "OIDC_ISS_ENDPOINT": ISSUER,
    "OAUTH2_VALIDATOR_CLASS": "hpts.oauth.ClientValidator",
    "ACCESS_TOKEN_GENERATOR": "hpts.oauth.access_token",
    "ACCESS_TOKEN_EXPIRE_SECONDS": ACCESS_TOKEN_SECONDS,
    "SCOPES_BACKEND_CLASS": "hpts.oauth.ClientScopes",
    "CLIENT_SECRET_HASHER": "generated_secret",
    "PKCE_REQUIRED": True,
    # http is for loopback alone (RFC 8252), which oauth.register_reader sees to.
    "ALLOWED_REDIRECT_URI_SCHEMES": ["https", "http"],
    "REFRESH_TOKEN_REUSE_PROTECTION": True,
    "COMPLIANT_BCP_RFC9700_IMPLICIT_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
    "COMPLIANT_BCP_RFC9700_PKCE_REQUIRED": True,
    "COMPLIANT_BCP_RFC9700_ACCESS_TOKEN_TRANSPORT": True,
    "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
    "COMPLIANT_BCP_RFC9700_TOKEN_STORAGE": True,
    "COMPLIANT_BCP_RFC9700_REFRESH_TOKEN": True,
    "COMPLIANT_BCP_RFC9700_REDIRECT_URI_SCHEME": False,
    "COMPLIANT_BCP_RFC9700_REDIRECT_URI_MATCHING": True,
}
# The first one hashes passwords of people; the other is for generated client secrets alone.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher", "hpts.oauth.GeneratedSecretHasher"]

# --- Sealed history --------------------------------------------------------------------------------------------------
# HPTS_SEAL_KEY (Ed25519, PEM) signs the heads of blocks; without it they are not signed. HPTS_PREVIOUS_SEAL_KEYS holds the public
# keys (PEM, one after the other) of all keys before it, for ever: what they have signed is verified with them.
SEAL_KEY = env.str("HPTS_SEAL_KEY", "", multiline=True)
PREVIOUS_SEAL_KEYS = env.str("HPTS_PREVIOUS_SEAL_KEYS", "", multiline=True)

# --- Workers ---------------------------------------------------------------------------------------------------------
REDIS_URL = env.str("REDIS_URL", "")

# --- Proofs ----------------------------------------------------------------------------------------------------------
# Every night's proof looks at what is new; one in so many days looks at everything again.
FULL_PROOF_DAYS = env.int("HPTS_FULL_PROOF_DAYS", 7)

# --- Webhooks --------------------------------------------------------------------------------------------------------
# Secrets of endpoints are sealed with the first key and opened with any; each has 32 characters or more.
WEBHOOK_KEYS = env.list("HPTS_WEBHOOK_KEYS", default=[])
# Development alone: receivers on this machine's loopback, over http too. Nothing else that is private, ever.
WEBHOOK_ALLOW_PRIVATE_TARGETS = DEVELOPMENT and env.bool("WEBHOOK_ALLOW_PRIVATE_TARGETS", False)
WEBHOOK_PORTS = frozenset(int(port) for port in env.list("HPTS_WEBHOOK_PORTS", default=["443"]))
# Our own names, and our own public addresses: a receiver is somebody else.
WEBHOOK_DENIED_HOSTS = frozenset(
    name.strip("[].").lower() for name in (*ALLOWED_HOSTS, urlsplit(ISSUER).hostname or "")
)
WEBHOOK_DENIED_NETWORKS = tuple(ip_network(each) for each in env.list("HPTS_WEBHOOK_DENIED_NETWORKS", default=[]))

# --- Alerts ----------------------------------------------------------------------------------------------------------
# Who is told by mail of newly opened breaks; nobody when it is empty. HPTS_EMAIL_URL is the server, such as
# smtp+tls://user:password@mail.example.com:587; without one mails are written to the log.
ALERT_EMAILS = env.list("HPTS_ALERT_EMAILS", default=[])
_email = env.email_url("HPTS_EMAIL_URL", default="consolemail://")
EMAIL_BACKEND, EMAIL_FILE_PATH = _email["EMAIL_BACKEND"], _email["EMAIL_FILE_PATH"]
EMAIL_HOST, EMAIL_PORT = _email["EMAIL_HOST"] or "localhost", _email["EMAIL_PORT"] or 25
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _email["EMAIL_HOST_USER"] or "", _email["EMAIL_HOST_PASSWORD"] or ""
EMAIL_USE_TLS, EMAIL_USE_SSL = _email.get("EMAIL_USE_TLS", False), _email.get("EMAIL_USE_SSL", False)
EMAIL_TIMEOUT = 20
DEFAULT_FROM_EMAIL = env.str("HPTS_EMAIL_FROM", "hpts@localhost")

# --- Limits ----------------------------------------------------------------------------------------------------------
# Requests a second of a tenant and of each of its clients, where the tenant's own row says nothing else; 0 for the tenant:
# no limits at all. A bucket holds what comes in so many seconds.
TENANT_REQUESTS_PER_SECOND = env.int("HPTS_TENANT_REQUESTS_PER_SECOND", 500)
CLIENT_REQUESTS_PER_SECOND = env.int("HPTS_CLIENT_REQUESTS_PER_SECOND", TENANT_REQUESTS_PER_SECOND)
RATE_BURST_SECONDS = env.float("HPTS_RATE_BURST_SECONDS", 2.0)
# Called with a tenant's id (str): its own quotas, each None where the settings' hold.
HPTS_TENANT_QUOTA = "ledger.queries.tenant_quota"
# How many processes share a quota while Redis is away.
WEB_WORKERS = env.int("HPTS_WEB_WORKERS", 2)

# --- What operators see ----------------------------------------------------------------------------------------------
LOG_LEVEL = env.str("HPTS_LOG_LEVEL", "INFO")
# A file that lines are appended to; standard error then has warnings and what is worse alone.
LOG_FILE = env.str("HPTS_LOG_FILE", "")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "hpts.logs.JSONLines"}},
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": "json",
            "level": "WARNING" if LOG_FILE else "DEBUG",
        },
        "file": {"class": "logging.FileHandler", "filename": LOG_FILE or os.devnull, "formatter": "json"},
    },
    "root": {"handlers": ["console", "file"] if LOG_FILE else ["console"], "level": LOG_LEVEL},
    # A refusal is an answer, not an event of the log; what goes wrong is logged by hpts.problems.
    "loggers": {
        "django": {"handlers": [], "propagate": True},
        "django.request": {"level": "CRITICAL"},
        # Tasks that come every few seconds would be all that there is to read; what fails is told all the same.
        "celery.app.trace": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
        # Says of each sign-in that nothing is wrong.
        "axes": {"level": "WARNING"},
    },
}
# GET /metrics is for who sends this as a bearer token; without it there is no such page.
METRICS_TOKEN = env.str("HPTS_METRICS_TOKEN", "development-metrics" if DEVELOPMENT else "")
# Tenants, by id, whose requests are counted by name; all others are one.
METRICS_TENANTS = frozenset(env.list("HPTS_METRICS_TENANTS", default=[]))
# What reads the gauges that stand in the database.
HPTS_GAUGES = [
    "hpts.health.gauges",
    "ledger.queries.gauges",
    "webhooks.queries.gauges",
    "reconciliation.queries.gauges",
]
# Where spans are sent to (OTLP over HTTP), such as http://collector:4318/v1/traces; empty: no traces, and no cost.
OTLP_ENDPOINT = env.str("HPTS_OTLP_ENDPOINT", "")
# The share of requests without a sampled `traceparent` that are traced.
TRACE_SHARE = env.float("HPTS_TRACE_SHARE", 1.0)
if OTLP_ENDPOINT:
    MIDDLEWARE.insert(1, "hpts.tracing.Spans")
