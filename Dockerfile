# One image for migrate, api, worker, beat and deliverer; what it does is its command.
FROM python:3.12-slim
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A volume that is mounted there gets this owner.
RUN useradd --system --uid 10001 --home-dir /app hpts && mkdir /counted && chown hpts /counted
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
COPY manage.py ./
COPY hpts hpts
COPY ledger ledger
COPY webhooks webhooks
COPY reconciliation reconciliation
COPY templates templates
# Collecting needs settings and no database; the keys of this one command are thrown away with it.
RUN HPTS_DEVELOPMENT=1 python manage.py collectstatic --noinput --verbosity 0 && chown -R hpts var
USER hpts
ARG HPTS_GIT_SHA=unknown
ENV HPTS_GIT_SHA=$HPTS_GIT_SHA HPTS_HOST=0.0.0.0 PORT=3000
EXPOSE 3000
CMD ["python", "-m", "hpts.run", "api"]
